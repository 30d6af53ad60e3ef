"""Whether the concurrency that nobody declares is within a tenth of the best: servers with slots, over real sockets.

    python -m benchmarks.knee --slots 1:20 --slots 4:50 --slots 64:500 --slots 1000:5000

Each server works on as many requests at once as it has slots, for so many milliseconds each, and lets the others wait.
Our client asks it without a declared concurrency until the knee is found, and is then measured by turns with a client
of each declared concurrency. The exit code is 1 if it did less than 90% of the best one.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import deque
from typing import Any

from benchmarks.api import Answering, messages


class Slots(Answering):
    """Answers as `Answering` does, but works on no more requests at once than it has slots."""

    n_free = 1
    waiting: deque[asyncio.BaseTransport] = deque()  # noqa: RUF012  one server in a process

    def asked(self) -> None:
        """Take a request: work on it, or let it wait."""
        Slots.waiting.append(self.transport)
        self.go_on()

    def go_on(self) -> None:
        """Let as many begin as there are slots."""
        while Slots.n_free and Slots.waiting:
            Slots.n_free -= 1
            asyncio.get_running_loop().call_later(self.latency_s, self.done, Slots.waiting.popleft())

    def done(self, transport: Any) -> None:
        """Answer, and let the next one begin."""
        transport.write(self.answer)
        Slots.n_free += 1
        self.go_on()


async def serve(slots: int, latency_s: float) -> None:
    """Serve until the process ends."""
    Slots.n_free, Slots.latency_s = slots, latency_s
    server = await asyncio.get_running_loop().create_server(Slots, "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def backend_for(url: str, at_once: int | None) -> Any:
    """Return our client; each model has a limit of its own, so that the knee of one teaches no other."""
    from skllm_ray.config import RateLimit, SecretRef
    from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec

    limit = None if at_once is None else RateLimit(max_concurrency=at_once)
    spec = OpenAISpec(
        api="custom_url", model=f"m{at_once or ''}", base_url=url, key_ref=SecretRef("openai_key", ()), limit=limit
    )
    return spec.open(lambda _: "sk-x")


def ask(backend: Any, n: int) -> float:
    """Return rows/s of `n` rows."""
    from skllm_ray.tasks.base import ChatRequest

    began = time.perf_counter()
    replies = backend.complete([ChatRequest(tuple(messages(i))) for i in range(n)])  # type: ignore[arg-type]
    assert all(reply.error is None for reply in replies)
    return n / (time.perf_counter() - began)


def found_at(backend: Any, url: str, slots: int, most_s: float) -> int:
    """Ask until the concurrency changes no more; return it."""
    from skllm_ray.llm.rate_limit.installed import current_limiter

    ends, level = time.monotonic() + most_s, 0
    while True:
        ask(backend, max(64, 6 * slots))
        shown: Any = current_limiter()
        (now,) = (one.concurrency for one in shown.show() if one.bucket.startswith(f"{url} m "))
        if now == level or time.monotonic() > ends:
            return int(now)
        level = now


def measure(slots: int, latency_ms: float, rounds: int, most_s: float) -> bool:
    """Show what was found at one server; return whether it is within a tenth of the best."""
    command = [sys.executable, "-m", "benchmarks.knee", "--serve", f"{slots}:{latency_ms}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        ours = backend_for(url, None)
        level = found_at(ours, url, slots, most_s)
        declared = sorted({max(1, slots // 2), slots, min(1024, 2 * slots)})
        tries = {None: ours, **{n: backend_for(url, n) for n in declared}}
        n_rows = max(24, 4 * slots)
        rates: dict[int | None, list[float]] = {n: [] for n in tries}
        for _ in range(rounds):
            for n, backend in tries.items():
                rates[n].append(ask(backend, n_rows))
        for backend in tries.values():
            backend.close()
    finally:
        server.terminate()
        server.wait(10)
    best = {n: max(some) for n, some in rates.items()}
    fixed = {n: round(rate, 1) for n, rate in best.items() if n is not None}
    share = best[None] / max(fixed.values())
    sys.stdout.write(f"{slots} slots: found {level}, {best[None]:.1f} rows/s, {share:.0%} of the best of {fixed}\n")
    sys.stdout.flush()
    return share >= 0.9


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--slots", action="append", help="slots, and milliseconds for an answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--most-s", type=float, default=180.0, help="the longest to look for the knee")
    parser.add_argument("--serve", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        slots, latency_ms = given.serve.split(":")
        asyncio.run(serve(int(slots), float(latency_ms) / 1000))
        return
    servers = [one.split(":") for one in given.slots or ["1:20", "4:50", "64:500", "1000:5000"]]
    found = [measure(int(slots), float(ms), given.rounds, given.most_s) for slots, ms in servers]
    sys.exit(0 if all(found) else 1)


if __name__ == "__main__":
    main()
