"""API backends: rows/s and CPU per request of the peers, the practical limit, the hard limit and ours, in one run.

    python -m benchmarks.api --rows 4000 --concurrency 128 --latency-ms 50 --scikit-llm .venv-scikit-llm/bin/python

All peers ask the same local server, which runs in a process of its own and whose CPU time is not counted. Peers run one
after another, each in a fresh process. The figures are warm: `--warm` rows are asked twice before, so that neither the
start of Ray's workers nor their imports are in them; a job that asks fewer rows once will see less. Then two jobs at
once on two Ray nodes share quotas that a second server enforces. The exit code is 1 if a target is missed in this run.
`make bench-api` calls it.
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
            self.asked()

    def asked(self) -> None:
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


Outcome = dict[str, int]
"""How many rows failed, and how many of them with a 429."""
NONE_FAILED: Outcome = {"failed": 0, "429s": 0}


def on_a_loop(ask: Callable[[int], Any], concurrency: int, loop: Any) -> Callable[[int], Outcome]:
    async def ask_all(n: int) -> Outcome:
        slots, failed = asyncio.Semaphore(concurrency), []

        async def one(i: int) -> None:
            async with slots:
                try:
                    await ask(i)
                except Exception as error:  # noqa: BLE001  whatever a client raises, its row has failed
                    failed.append(getattr(error, "status_code", getattr(error, "status", None)))

        await asyncio.gather(*map(one, range(n)))
        return {"failed": len(failed), "429s": failed.count(429)}

    return lambda n: loop.run_until_complete(ask_all(n))


def bare_aiohttp(url: str, concurrency: int) -> Callable[[int], Outcome]:
    import aiohttp

    loop = asyncio.new_event_loop()

    async def opened() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    session = loop.run_until_complete(opened())

    async def ask(i: int) -> str:
        body = {"model": "m", "messages": messages(i), "temperature": 0}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            return str((await response.json())["choices"][0]["message"]["content"])

    return on_a_loop(ask, concurrency, loop)


def bare_openai(url: str, concurrency: int, *, aiohttp: bool = False) -> Callable[[int], Outcome]:
    import openai

    client = openai.AsyncOpenAI(
        base_url=url, api_key="sk-x", max_retries=0, http_client=openai.DefaultAioHttpClient() if aiohttp else None
    )

    async def ask(i: int) -> str | None:
        found = await client.chat.completions.create(model="m", messages=messages(i), temperature=0)  # type: ignore[arg-type]
        return found.choices[0].message.content

    return on_a_loop(ask, concurrency, asyncio.new_event_loop())


def ours(url: str, concurrency: int, *, nodes: int = 0) -> Callable[[int], Outcome]:
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


def _ask(clf: Any, n: int) -> Outcome:
    found = clf.predict([TEXT.format(i) for i in range(n)])  # raises where a row fails
    assert set(found) == {"positive"}, set(found)
    return NONE_FAILED


def our_backend(url: str, concurrency: int) -> Callable[[int], Outcome]:
    """Ours without the estimator and its blocks: what one worker process does."""
    from skllm_ray.config import RateLimit, SecretRef
    from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
    from skllm_ray.tasks.base import ChatRequest

    spec = OpenAISpec(
        api="custom_url", model="m", base_url=url, key_ref=SecretRef("openai_key", ()),
        limit=RateLimit(max_concurrency=concurrency),
    )  # fmt: skip
    backend = spec.open(lambda _: "sk-x")

    def ask(n: int) -> Outcome:
        replies = backend.complete([ChatRequest(tuple(messages(i))) for i in range(n)])  # type: ignore[arg-type]
        kinds = [reply.error.kind for reply in replies if reply.error is not None]
        return {"failed": len(kinds), "429s": kinds.count("rate_limit")}

    return ask


def ray_data(url: str, concurrency: int) -> Callable[[int], Outcome]:
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

    def ask(n: int) -> Outcome:
        return {**NONE_FAILED, "failed": n - len(processor(ray.data.range(n, override_num_blocks=8)).take_all())}

    return ask


SCIKIT_LLM = """
import json, os, sys, time
from skllm.models.gpt.classification.zero_shot import ZeroShotGPTClassifier  # skllm.classification fails
from skllm.config import SKLLMConfig
url, n, warm, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
SKLLMConfig.set_openai_key("sk-x"); SKLLMConfig.set_gpt_url(url)
clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["negative", "neutral", "positive"])
ask = lambda n: clf.predict([text.format(i) for i in range(n)], num_workers=32)
ask(warm); ask(warm)
t, c = time.perf_counter(), time.process_time()
ask(n)
print("RESULT", json.dumps({"s": time.perf_counter() - t, "cpu_s": time.process_time() - c, "failed": 0, "429s": 0}))
"""

SCIKIT = "scikit-llm 1.4.3, 32 workers"
PRACTICAL_LIMIT = "AsyncOpenAI + semaphore (the practical limit)"
LOCAL = "ours, local mode"
RAY_DATA = "Ray Data HttpRequestProcessorConfig"
SLOW = {SCIKIT, RAY_DATA}  # these get a tenth of the rows
PEERS: dict[str, Callable[[str, int], Callable[[int], Outcome]]] = {
    "bare aiohttp (the hard limit)": bare_aiohttp,
    PRACTICAL_LIMIT: bare_openai,
    "AsyncOpenAI, aiohttp transport": lambda url, n: bare_openai(url, n, aiohttp=True),
    RAY_DATA: ray_data,
    "ours, backend alone": our_backend,
    LOCAL: ours,
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
    for _ in range(2):
        ask(warm)
    started, cpu = time.perf_counter(), cpu_s()
    outcome = ask(rows)
    result = {"s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu, **outcome}
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


def measured(command: list[str], rows: int) -> dict[str, Any]:
    """Return a peer's figures; of one that fails, no more than that."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.stderr.write(f"{command[:4]}: no result\n{done.stderr[-1500:]}\n")
        return {"rows": rows, "failed": rows, "429s": None}
    return {"rows": rows, **json.loads(lines[-1].removeprefix("RESULT "))}


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


RAMP_S = 15.0  # at the beginning, while jobs start, and at the end, while one has ended before the other
WINDOW_S = 60.0


def steady_share(seen: list[tuple[float, int]], limit: int) -> float | None:
    """Return the mean use of the quota over all windows between ramp-up and tail; None where there is none."""
    shares = []
    begin, end = seen[0][0] + RAMP_S, seen[-1][0] - RAMP_S - WINDOW_S
    while begin <= end:
        shares.append(sum(amount for when, amount in seen if begin <= when < begin + WINDOW_S) / limit)
        begin += 1.0
    return sum(shares) / len(shares) if shares else None


def quota(rpm: int | None, tpm: int | None, rows: int) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    from skllm_ray.testing import ChatServer

    class Noting(ChatServer):
        """Notes when it let what through."""

        def _charge(self, tokens: int) -> Any:
            refused, headers = super()._charge(tokens)
            if refused is None:
                seen.append((time.monotonic(), 1 if rpm else tokens))
            return refused, headers

    seen: list[tuple[float, int]] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    try:
        with Noting(latency_s=0.05, requests_per_minute=rpm, tokens_per_minute=tpm) as server:
            source = QUOTA_JOB.format(
                address=cluster.address, url=server.url, rpm=rpm, tpm=tpm, labels=LABELS, text=TEXT, rows=rows
            )
            jobs = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(2)]
            codes = [job.wait(1200) for job in jobs]
            limit = rpm or tpm or 1
            return {
                "quota": f"{rpm} requests/min" if rpm else f"{tpm} tokens/min",
                "rows": 2 * rows,
                "steady": steady_share(sorted(seen), limit) if seen else None,
                "most": (server.most_in_window if rpm else server.most_tokens_in_window) / limit,
                "429s": server.n_refused,
                "failed_jobs": sum(code != 0 for code in codes),
            }
    finally:
        cluster.shutdown()


# --- what must be reached --------------------------------------------------------------------------------------------


def rate(found: dict[str, Any]) -> float:
    return float(found["rows"] / found["s"]) if "s" in found else 0.0


def missed(peers: dict[str, dict[str, Any]], quotas: list[dict[str, Any]]) -> list[str]:
    """Return the targets that this run missed."""
    wrong = [f"{name}: {found['failed']} rows failed" for name, found in peers.items() if found["failed"]]
    for name in (LOCAL, "ours, 1 Ray node", "ours, 2 Ray nodes"):
        if rate(peers[name]) <= rate(peers[PRACTICAL_LIMIT]):
            wrong.append(f"{name}: not above {PRACTICAL_LIMIT}")
        if SCIKIT in peers and rate(peers[name]) < 10 * rate(peers[SCIKIT]):
            wrong.append(f"{name}: not ten times {SCIKIT}")
        if peers[name]["429s"]:
            wrong.append(f"{name}: {peers[name]['429s']} answers with 429")
    if "s" in peers[LOCAL] and peers[LOCAL]["cpu_s"] / peers[LOCAL]["rows"] > 0.0015:
        wrong.append(f"{LOCAL}: more than 1.5 ms of CPU per request")
    for one in quotas:
        if one["429s"] or one["failed_jobs"]:
            wrong.append(f"{one['quota']}: {one['429s']} answers with 429, {one['failed_jobs']} failed jobs")
        if one["steady"] is None or one["steady"] < 0.95:
            wrong.append(f"{one['quota']}: less than 95% of it used")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--warm", type=int, default=2000, help="rows that are asked twice before, not counted")
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
        run_peer(given.peer, given.url, given.rows, given.warm, given.concurrency)
    elif report(given):
        sys.exit(1)


def report(given: argparse.Namespace) -> list[str]:
    """Measure, show, and return the targets that were missed."""
    from rich.console import Console
    from rich.table import Table

    me = [sys.executable, "-m", "benchmarks.api"]
    server = subprocess.Popen(
        [*me, "--serve", "--latency-ms", str(given.latency_ms)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    results: dict[str, dict[str, Any]] = {}
    try:
        if given.scikit_llm:
            rows = given.rows // 10
            results[SCIKIT] = measured([given.scikit_llm, "-c", SCIKIT_LLM, url, str(rows), "40", TEXT], rows)
        for name in PEERS:
            rows, warm = (n // 10 if name in SLOW else n for n in (given.rows, given.warm))
            options = ["--rows", str(rows), "--warm", str(warm), "--concurrency", str(given.concurrency)]
            results[name] = measured([*me, "--peer", name, "--url", url, *options], rows)
    finally:
        server.terminate()
        server.wait(10)
    title = (
        f"{given.concurrency} in flight, answers after {given.latency_ms:g} ms, warm ({given.warm} rows asked twice)"
    )
    table = Table(title=title)
    for heading in ("", "rows/s", "CPU ms per request", "429s", "failed"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in results.items():
        measures = (
            (f"{rate(found):.0f}", f"{1000 * found['cpu_s'] / found['rows']:.2f}") if "s" in found else ("–", "–")
        )
        table.add_row(name, *measures, "–" if found["429s"] is None else str(found["429s"]), str(found["failed"]))
    console = Console()
    console.print(table)
    quotas = []
    if given.quotas:
        quotas = [quota(600, None, 900), quota(6000, None, 6000), quota(None, 120_000, 1500)]
        shown = Table(title="Two jobs at once on two nodes, under a quota that the server enforces")
        for heading in ("quota", "rows", "used, mean of steady windows", "used, fullest window", "429s", "failed jobs"):
            shown.add_column(heading, justify="right")
        for one in quotas:
            steady = "–" if one["steady"] is None else f"{one['steady']:.1%}"
            numbers = (str(one["429s"]), str(one["failed_jobs"]))
            shown.add_row(one["quota"], str(one["rows"]), steady, f"{one['most']:.1%}", *numbers)
        console.print(shown)
    wrong = missed(results, quotas)
    for one_missed in wrong:
        console.print(f"missed: {one_missed}", style="red", markup=False)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        told = {"setup": vars(given), "peers": results, "quotas": quotas, "missed": wrong}
        given.json.write_text(json.dumps(told, default=str))
    return wrong


if __name__ == "__main__":
    main()
