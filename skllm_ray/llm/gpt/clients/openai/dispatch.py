"""Asks a server many questions: how many at once, how often again, and for how long. No SDK here."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TypeAlias

from skllm_ray.tasks.base import ChatRequest, Reply, RowError

DEFAULT_CONCURRENCY = 32
"""Requests in flight where no limit was declared."""

_LONGEST_PAUSE_S = 30.0

Ask: TypeAlias = Callable[[ChatRequest], Awaitable[Reply]]
"""Asks once and returns a reply, whatever happens."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a row may take, and how often it is tried."""

    timeout_s: float = 120.0
    """The longest silence of the server within one try."""
    deadline_s: float = 600.0
    """The longest time for a row, with all its tries and pauses."""
    max_tries: int = 5
    """How often a row is asked, as long as trying again may help."""
    backoff_s: float = 0.5
    """Upper bound of the first random pause between tries; it doubles with every try. What the server says wins."""


class Dispatcher:
    """Runs requests on an event loop in a thread of its own, so that it works under any other running loop.

    Parameters
    ----------
    patience : Patience
        How long and how often to try.
    max_concurrency : int
        Requests in flight, over all threads that call :meth:`run`.
    """

    def __init__(self, patience: Patience, max_concurrency: int) -> None:
        self._patience = patience
        self._max_concurrency = max_concurrency
        self._slots = asyncio.Semaphore(max_concurrency)
        self._closed = False
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="skllm-ray-requests", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[ChatRequest], ask: Ask) -> list[Reply]:
        """Return one reply per request, in order. After a fatal reply, what was not asked yet is cancelled."""
        with self._closing:
            if self._closed:
                raise RuntimeError("This backend was closed.")
            future = asyncio.run_coroutine_threadsafe(self._run(requests, ask), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("This backend was closed while it was asked.") from None
        finally:
            future.cancel()  # after Ctrl-C, nothing goes on asking; a finished future ignores it

    def close(self, free: Callable[[], Awaitable[None]]) -> None:
        """Cancel what is in flight, await `free` on the loop, end the thread. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._drain(free), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _run(self, requests: Sequence[ChatRequest], ask: Ask) -> list[Reply]:
        replies = [Reply()] * len(requests)
        rows = iter(enumerate(requests))
        stop: asyncio.Future[RowError] = self._loop.create_future()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._max_concurrency, len(requests))):
                group.create_task(self._work(rows, replies, ask, stop))
        return replies

    async def _work(
        self, rows: Iterator[tuple[int, ChatRequest]], replies: list[Reply], ask: Ask, stop: asyncio.Future[RowError]
    ) -> None:
        for row, request in rows:
            async with self._slots:
                replies[row] = _cancelled(stop.result()) if stop.done() else await self._persist(request, ask, stop)
            error = replies[row].error
            if error is not None and error.fatal and not stop.done():
                stop.set_result(error)

    async def _persist(self, request: ChatRequest, ask: Ask, stop: asyncio.Future[RowError]) -> Reply:
        """Ask until there is an answer, or asking again cannot help, or time, tries or the job are over."""
        deadline = self._loop.time() + self._patience.deadline_s
        reply = Reply(attempts=0)
        for tries in range(1, self._patience.max_tries + 1):
            attempts = reply.attempts
            try:
                async with asyncio.timeout_at(deadline):
                    reply = await ask(request)
            except TimeoutError:
                return _late(self._patience.deadline_s, attempts + 1)
            reply = replace(reply, text=_whole(reply.text), attempts=attempts + reply.attempts)
            if reply.error is None or not reply.error.retryable or tries == self._patience.max_tries:
                break
            pause_s = self._pause_s(tries, reply.error.retry_after_s)
            if self._loop.time() + pause_s >= deadline:
                break
            await asyncio.wait([stop], timeout=pause_s)
            if stop.done():
                break
        return reply

    def _pause_s(self, tries: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return random.uniform(0, min(_LONGEST_PAUSE_S, self._patience.backoff_s * 2 ** (tries - 1)))

    async def _drain(self, free: Callable[[], Awaitable[None]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await free()
        await self._loop.shutdown_default_executor()


def _whole(text: str | None) -> str | None:
    """Replace halves of surrogate pairs, which a cut answer may end in and no Arrow string can hold."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _late(deadline_s: float, attempts: int) -> Reply:
    message = f"No answer within the row's {deadline_s:g} s."
    return Reply(error=RowError("timeout", message, retryable=True), attempts=attempts)


def _cancelled(cause: RowError) -> Reply:
    message = f"Not asked: another row ended the job ({cause.kind}: {cause.message})"
    return Reply(error=RowError("cancelled", message), attempts=0)
