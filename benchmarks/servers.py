"""Rows/s through us against a bare aiohttp client that sends the same requests, on a server that others wrote.

    python -m benchmarks.servers --url http://127.0.0.1:8000/v1 --model gemma --texts questions.csv

What our client sends is recorded once, between it and the server, which also lets the server learn the prompts. Then
our client, in local mode, and the bare one, which sends the recorded requests as fast as each of some
concurrencies allows, take turns. The exit code is 1 if ours did less than 90% of the best bare rows/s.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web


class Recorded(NamedTuple):
    """One request as it was sent."""

    path: str
    body: bytes


@contextmanager
def recorder(url: str, into: list[Recorded]) -> Iterator[str]:
    """Hand requests on to `url` and record them; yield the address to ask."""
    loop, port = asyncio.new_event_loop(), []
    base = url.rsplit("/v1", 1)[0]

    async def hand_on(request: web.Request) -> web.Response:
        body = await request.read()
        async with session.request(request.method, base + request.path_qs, data=body, headers=HEADERS) as answer:
            if request.method == "POST" and answer.status == 200:
                into.append(Recorded(request.path_qs, body))
            told = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
            return web.Response(body=await answer.read(), status=answer.status, headers=told)

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", hand_on)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(runner.addresses[0][1])
        return runner

    session: Any = None
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def opened() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    session = asyncio.run_coroutine_threadsafe(opened(), loop).result()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield f"http://127.0.0.1:{port[0]}/v1"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    asyncio.run_coroutine_threadsafe(session.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)


HEADERS = {"Content-Type": "application/json"}


async def bare(url: str, requests: list[Recorded], at_once: int) -> float:
    """Send recorded requests, so many at once; return the seconds that it took."""
    base, left = url.rsplit("/v1", 1)[0], iter(requests)

    async def worker(session: aiohttp.ClientSession) -> None:
        for one in left:
            async with session.post(base + one.path, data=one.body, headers=HEADERS) as answer:
                await answer.read()
                answer.raise_for_status()

    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(at_once)))
    return time.perf_counter() - began


def ask(url: str, options: argparse.Namespace, texts: list[str]) -> float:
    """Ask through us; return the seconds that it took. No row may fail."""
    from skllm_ray.classification import ZeroShotGPTClassifier
    from skllm_ray.config import SKLLMConfig

    SKLLMConfig.set_gpt_url(url)
    clf = ZeroShotGPTClassifier(model=f"custom_url::{options.model}").fit(None, options.labels.split(","))
    began = time.perf_counter()
    found = getattr(clf, options.method)(texts)
    taken = time.perf_counter() - began
    if options.method == "predict_details":
        assert found["error"].isna().all(), found["error"].dropna().iloc[0]
    return taken


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Measure, print, and tell by the exit code whether it was enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True, help="a CSV file with a column `text`")
    parser.add_argument("--labels", default="card,transfer,exchange rate,cash withdrawal,account")
    parser.add_argument("--method", default="predict", choices=["predict", "predict_proba", "predict_details"])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=4, help="calls before the first round")
    parser.add_argument("--at-once", type=int, nargs="*", default=[2, 4, 8, 16, 32, 64])
    options = parser.parse_args()
    import pandas as pd

    import skllm_ray
    from skllm_ray.config import SKLLMConfig

    skllm_ray.init(local_mode=True)
    SKLLMConfig.set_openai_key("sk-not-needed")
    texts = pd.read_csv(options.texts)["text"].sample(options.rows, random_state=0).tolist()
    sent: list[Recorded] = []
    with recorder(options.url, sent) as between:
        ask(between, options, texts)
    paths = {path: sum(one.path == path for one in sent) for path in dict.fromkeys(one.path for one in sent)}
    say(f"{options.method}: {len(texts)} rows, requests: {paths}")
    for _ in range(options.warm):  # until our client knows how many at once the server likes
        ask(options.url, options, texts)
    ours: list[float] = []
    theirs: dict[int, list[float]] = {at_once: [] for at_once in options.at_once}
    for n in range(options.rounds):
        ours.append(len(texts) / ask(options.url, options, texts))
        for at_once in options.at_once[:: 1 if n % 2 else -1]:
            theirs[at_once].append(len(texts) / asyncio.run(bare(options.url, sent, at_once)))
        say(f"  ours {ours[-1]:.1f} rows/s; bare { ({k: round(v[-1], 1) for k, v in theirs.items()}) }")
    at, best = max(((k, statistics.median(v)) for k, v in theirs.items()), key=lambda one: one[1])
    share = statistics.median(ours) / best
    say(f"ours {statistics.median(ours):.1f} rows/s, bare {best:.1f} with {at} at once: {share:.0%}")
    return int(share < 0.9)


if __name__ == "__main__":
    sys.exit(main())
