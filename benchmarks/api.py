"""API backends: rows/s and CPU per request of the peers, the practical limit, the hard limit and ours, in one run.

    python -m benchmarks.api --rows 2000 --concurrency 128 --latency-ms 50 --scikit-llm .venv-scikit-llm/bin/python

All peers ask the same local server, which runs in a process of its own and whose CPU time is not counted. Peers run one
after another, each in a fresh process; a first part of the rows warms them up. Then two jobs at once on two Ray nodes
share quotas that a second server enforces. `make bench-api` calls it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LABELS = ["negative", "neutral", "positive"]
TEXT = "Review number {}: I am quite happy with it and it works as it should, although the box was damaged. positive"
BODY = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": '{"label": "positive"}'}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 6, "total_tokens": 106},
    }
).encode()  # fmt: skip


# --- the server ------------------------------------------------------------------------------------------------------


class Answering(asyncio.Protocol):
    """Just enough HTTP to be cheap: every request with a body gets the same answer, after the latency."""

    latency_s = 0.05
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            asyncio.get_running_loop().call_later(self.latency_s, self.transport.write, self.answer)


async def serve(latency_s: float) -> None:
    Answering.latency_s = latency_s
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


# --- the peers: each returns a function that asks about some rows -----------------------------------------------------


def messages(i: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You classify."}, {"role": "user", "content": TEXT.format(i)}]


def on_a_loop(ask: Callable[[int], Any], concurrency: int, loop: Any) -> Callable[[int], None]:
    async def ask_all(n: int) -> None:
        slots = asyncio.Semaphore(concurrency)

        async def one(i: int) -> None:
            async with slots:
                await ask(i)

        await asyncio.gather(*map(one, range(n)))

    return lambda n: loop.run_until_complete(ask_all(n))


def bare_aiohttp(url: str, concurrency: int) -> Callable[[int], None]:
    import aiohttp

    loop = asyncio.new_event_loop()

    async def opened() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    session = loop.run_until_complete(opened())

    async def ask(i: int) -> str:
        body = {"model": "m", "messages": messages(i), "temperature": 0}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            return str((await response.json())["choices"][0]["message"]["content"])

    return on_a_loop(ask, concurrency, loop)


def bare_openai(url: str, concurrency: int, *, aiohttp: bool = False) -> Callable[[int], None]:
    import openai

    client = openai.AsyncOpenAI(
        base_url=url, api_key="sk-x", max_retries=0, http_client=openai.DefaultAioHttpClient() if aiohttp else None
    )

    async def ask(i: int) -> str | None:
        found = await client.chat.completions.create(model="m", messages=messages(i), temperature=0)  # type: ignore[arg-type]
        return found.choices[0].message.content

    return on_a_loop(ask, concurrency, asyncio.new_event_loop())


def ours(url: str, concurrency: int, *, nodes: int = 0) -> Callable[[int], None]:
    import skllm_ray
    from skllm_ray.classification import ZeroShotGPTClassifier
    from skllm_ray.config import SKLLMConfig

    if nodes:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        skllm_ray.init(cluster.address)
    else:
        skllm_ray.init(local_mode=True)
    SKLLMConfig.set_gpt_url(url)
    SKLLMConfig.set_show_progress(False)
    SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=concurrency)
    clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-x").fit(None, LABELS)
    return lambda n: _ask(clf, n)


def _ask(clf: Any, n: int) -> None:
    found = clf.predict([TEXT.format(i) for i in range(n)])
    assert set(found) == {"positive"}, set(found)


def our_backend(url: str, concurrency: int) -> Callable[[int], None]:
    """Ours without the estimator and its blocks: what one worker process does."""
    from skllm_ray.config import RateLimit, SecretRef
    from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
    from skllm_ray.tasks.base import ChatRequest

    spec = OpenAISpec(
        api="custom_url", model="m", base_url=url, key_ref=SecretRef("openai_key", ()),
        limit=RateLimit(max_concurrency=concurrency),
    )  # fmt: skip
    backend = spec.open(lambda _: "sk-x")

    def ask(n: int) -> None:
        replies = backend.complete([ChatRequest(tuple(messages(i))) for i in range(n)])  # type: ignore[arg-type]
        assert all(reply.error is None for reply in replies)

    return ask


def ray_data(url: str, concurrency: int) -> Callable[[int], None]:
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    config = HttpRequestProcessorConfig(
        url=f"{url}/chat/completions", headers={"authorization": "Bearer sk-x"}, concurrency=2, batch_size=concurrency
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {"payload": {"model": "m", "messages": messages(row["id"]), "temperature": 0}},
        postprocess=lambda row: {"text": row["http_response"]["choices"][0]["message"]["content"]},
    )

    def ask(n: int) -> None:
        assert len(processor(ray.data.range(n, override_num_blocks=8)).take_all()) == n

    return ask


SCIKIT_LLM = """
import json, os, sys, time
from skllm.models.gpt.classification.zero_shot import ZeroShotGPTClassifier  # skllm.classification fails
from skllm.config import SKLLMConfig
url, n, warm, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
SKLLMConfig.set_openai_key("sk-x"); SKLLMConfig.set_gpt_url(url)
clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["negative", "neutral", "positive"])
ask = lambda n: clf.predict([text.format(i) for i in range(n)], num_workers=32)
ask(warm)
t, c = time.perf_counter(), time.process_time()
ask(n)
print("RESULT", json.dumps({"s": time.perf_counter() - t, "cpu_s": time.process_time() - c}))
"""

PEERS: dict[str, Callable[[str, int], Callable[[int], None]]] = {
    "bare aiohttp (the hard limit)": bare_aiohttp,
    "AsyncOpenAI + semaphore (the practical limit)": bare_openai,
    "AsyncOpenAI, aiohttp transport": lambda url, n: bare_openai(url, n, aiohttp=True),
    "Ray Data HttpRequestProcessorConfig": ray_data,
    "ours, backend alone": our_backend,
    "ours, local mode": ours,
    "ours, 1 Ray node": lambda url, n: ours(url, n, nodes=1),
    "ours, 2 Ray nodes": lambda url, n: ours(url, n, nodes=2),
}


def cpu_s() -> float:
    """Return the CPU time of this process and of all that it started, Ray's processes among them."""
    import psutil

    me = psutil.Process()
    found = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
            found += times.user + times.system
        except psutil.Error:
            continue
    return found


def run_peer(name: str, url: str, rows: int, warm: int, concurrency: int) -> None:
    ask = PEERS[name](url, concurrency)
    ask(warm)
    started, cpu = time.perf_counter(), cpu_s()
    ask(rows)
    result = {"s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu}
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


def measured(command: list[str]) -> dict[str, float] | None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.stderr.write(f"{command[:4]}: no result\n{done.stderr[-1500:]}\n")
        return None
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


# --- quotas: two jobs at once on two nodes ---------------------------------------------------------------------------

QUOTA_JOB = """
import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
skllm_ray.init({address!r})
SKLLMConfig.set_gpt_url({url!r}); SKLLMConfig.set_show_progress(False)
SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute={rpm}, tokens_per_minute={tpm})
clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-x").fit(None, {labels!r})
clf.predict([{text!r}.format(i) for i in range({rows})])
"""


def quota(rpm: int | None, tpm: int | None, rows: int) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    from skllm_ray.testing import ChatServer

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    try:
        with ChatServer(latency_s=0.05, requests_per_minute=rpm, tokens_per_minute=tpm) as server:
            source = QUOTA_JOB.format(
                address=cluster.address, url=server.url, rpm=rpm, tpm=tpm, labels=LABELS, text=TEXT, rows=rows
            )
            jobs = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(2)]
            codes = [job.wait(1200) for job in jobs]
            used = server.most_in_window / rpm if rpm else server.most_tokens_in_window / (tpm or 1)
            what = f"{rpm} requests/min" if rpm else f"{tpm} tokens/min"
            return {
                "quota": what, "rows": 2 * rows, "most_used_in_60_s": used, "429s": server.n_refused,
                "failed": sum(codes),
            }  # fmt: skip
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--scikit-llm", default=None, help="the Python of an environment with scikit-llm 1.4.3")
    parser.add_argument("--quotas", action="store_true", help="the runs with quotas too: several minutes each")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--url", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.latency_ms / 1000))
    elif given.peer:
        run_peer(given.peer, given.url, given.rows, 300, given.concurrency)
    else:
        report(given)


def report(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    me = [sys.executable, "-m", "benchmarks.api"]
    server = subprocess.Popen(
        [*me, "--serve", "--latency-ms", str(given.latency_ms)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    results: dict[str, dict[str, float]] = {}
    try:
        if given.scikit_llm:
            rows = max(100, given.rows // 10)
            found = measured([given.scikit_llm, "-c", SCIKIT_LLM, url, str(rows), "40", TEXT])
            if found:
                results["scikit-llm 1.4.3, 32 workers"] = {**found, "rows": rows}
        for name in PEERS:
            options = ["--rows", str(given.rows), "--concurrency", str(given.concurrency)]
            found = measured([*me, "--peer", name, "--url", url, *options])
            if found:
                results[name] = {**found, "rows": given.rows}
    finally:
        server.terminate()
        server.wait(10)
    table = Table(title=f"{given.concurrency} in flight, answers after {given.latency_ms:g} ms")
    for heading in ("", "rows/s", "CPU ms per request"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in results.items():
        table.add_row(name, f"{found['rows'] / found['s']:.0f}", f"{1000 * found['cpu_s'] / found['rows']:.2f}")
    console = Console()
    console.print(table)
    quotas = []
    if given.quotas:
        quotas = [quota(600, None, 900), quota(6000, None, 6000), quota(None, 120_000, 1500)]
        shown = Table(title="Two jobs at once on two nodes, under a quota that the server enforces")
        for heading in ("quota", "rows", "most of it used in 60 s", "429s"):
            shown.add_column(heading, justify="right")
        for one in quotas:
            shown.add_row(one["quota"], str(one["rows"]), f"{one['most_used_in_60_s']:.1%}", str(one["429s"]))
        console.print(shown)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"setup": vars(given), "peers": results, "quotas": quotas}, default=str))


if __name__ == "__main__":
    main()
