"""Asks a server many questions: how many at once, how often again, and for how long. No SDK here."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from skllm_ray.config import RateLimit
from skllm_ray.llm.gate import DroppedError, Gate, PausedTooLongError, Permit
from skllm_ray.tasks.base import LOST, Embedding, Reply, RowError

_LONGEST_PAUSE_S = 30.0
_CONNECT_S = 10.0
_MOST_ROWS = 1024  # rows of one call that wait or are in flight together

Q = TypeVar("Q")
R = TypeVar("R", Reply, Embedding)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a row may take, and how often it is tried."""

    timeout_s: float = 120.0
    """The longest silence of the server within one try."""
    deadline_s: float = 600.0
    """The longest time for a row, with all its tries and pauses, from when the limit first lets it through."""
    max_tries: int = 5
    """How often a row is asked, as long as trying again may help."""
    backoff_s: float = 0.5
    """Upper bound of the first random pause between tries; it doubles with every try. What the server says wins."""
    repeats_lost: bool = True
    """Whether to ask again after a failure that leaves open whether the server did its work, and wants to be paid."""


@dataclass(frozen=True, slots=True)
class Job(Generic[Q, R]):
    """How to ask one kind of question."""

    ask: Callable[[Q, Permit], Awaitable[R | None]]
    """Asks once and returns an answer, whatever happens; None where it should be asked again in another way."""
    cost: Callable[[Q], int]
    """Estimates the tokens of a question and its answer."""
    empty: Callable[[], R]
    """Makes an answer of the right type."""
    turn: Callable[[Q], AbstractAsyncContextManager[None]] = lambda _: nullcontext()
    """Lets a question begin, and holds what has to wait for it."""


class Dispatcher:
    """Runs requests on an event loop in a thread of its own, so that it works under any other running loop.

    Parameters
    ----------
    patience : Patience
        How long and how often to try.
    bucket : str
        What shares the quota.
    limit : RateLimit or None
        The declared quota.
    """

    def __init__(self, patience: Patience, bucket: str, limit: RateLimit | None) -> None:
        self._patience = patience
        self._closed = False
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._gate = Gate(bucket, limit, patience.timeout_s + _CONNECT_S, patience.deadline_s)
        self._thread = threading.Thread(target=self._loop.run_forever, name="skllm-ray-requests", daemon=True)
        self._thread.start()

    def run(self, questions: Sequence[Q], job: Job[Q, R], tell: Callable[[int, R], None] | None = None) -> list[R]:
        """Return one answer per question, in order. After a fatal one, what was not asked yet is cancelled.

        `tell` gets every answer when it arrives, with the question's position; it is called on the event loop.
        """
        with self._closing:
            if self._closed:
                raise RuntimeError("This backend was closed.")
            future = asyncio.run_coroutine_threadsafe(self._run(questions, job, tell), self._loop)
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

    async def _run(self, questions: Sequence[Q], job: Job[Q, R], tell: Callable[[int, R], None] | None) -> list[R]:
        answers = [job.empty()] * len(questions)
        rows = iter(enumerate(questions))
        stop: asyncio.Future[RowError] = self._loop.create_future()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_MOST_ROWS, len(questions))):
                group.create_task(self._work(rows, answers, job, stop, tell))
        return answers

    async def _work(
        self,
        rows: Iterator[tuple[int, Q]],
        answers: list[R],
        job: Job[Q, R],
        stop: asyncio.Future[RowError],
        tell: Callable[[int, R], None] | None,
    ) -> None:
        for row, question in rows:
            async with job.turn(question):
                answer = await self._persist(question, job, stop)
            error = answer.error
            if error is not None and error.fatal and not stop.done():
                stop.set_result(error)
                self._gate.drop(stop)
            answers[row] = answer
            if tell is not None:
                tell(row, answer)

    async def _persist(self, question: Q, job: Job[Q, R], stop: asyncio.Future[RowError]) -> R:
        """Ask until there is an answer, or asking again cannot help, or time, tries or the job are over."""
        answer, attempts, tries, deadline = job.empty(), 0, 0, None
        while True:
            refused = None
            try:
                if stop.done():
                    raise DroppedError
                permit = await self._gate.acquire(job.cost(question), stop)
                if stop.done():
                    self._gate.cancel(permit)
                    raise DroppedError
            except PausedTooLongError as error:
                refused = _paused(error)
            except DroppedError:
                refused = _cancelled(stop.result())
            if refused is not None:
                return answer if answer.error is not None else replace(answer, error=refused, attempts=attempts)
            deadline = deadline or self._loop.time() + self._patience.deadline_s
            attempts += 1
            found = None
            try:
                async with asyncio.timeout_at(deadline):
                    found = await job.ask(question, permit)
            except TimeoutError:
                late = _late(self._patience.deadline_s)
                if not self._patience.repeats_lost:
                    return replace(answer, error=late, attempts=attempts)
                # What the server said before tells more than that the time is over.
                return replace(answer, error=answer.error or late, attempts=attempts)
            except Exception as error:  # noqa: BLE001  the last resort: one odd answer must not lose the others
                return replace(answer, error=_unforeseen(error), attempts=attempts)
            finally:
                self._gate.release(permit, _used(found))
            if found is None:
                continue
            tries += 1
            answer = replace(found, attempts=attempts)
            error_ = answer.error
            if error_ is None or not error_.retryable or tries == self._patience.max_tries:
                return answer
            if error_.kind in LOST and not self._patience.repeats_lost:
                return answer
            pause_s = self._pause_s(tries, error_.retry_after_s)
            if self._loop.time() + pause_s >= deadline:
                return answer
            await asyncio.wait([stop], timeout=pause_s)
            if stop.done():
                return answer

    def _pause_s(self, tries: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return random.uniform(0, min(_LONGEST_PAUSE_S, self._patience.backoff_s * 2 ** (tries - 1)))

    async def _drain(self, free: Callable[[], Awaitable[None]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._gate.close()
        await free()
        await self._loop.shutdown_default_executor()


def whole(text: str | None) -> str | None:
    """Replace halves of surrogate pairs, which a cut answer may end in and no Arrow string can hold."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _used(answer: Reply | Embedding | None) -> int | None:
    if answer is None or answer.error is not None:
        return None
    return answer.usage.prompt_tokens + answer.usage.completion_tokens or None


def _late(deadline_s: float) -> RowError:
    return RowError("timeout", f"No answer within the row's {deadline_s:g} s.", retryable=True)


def _unforeseen(error: Exception) -> RowError:
    """Return the error of an answer that nobody could read; what it says stays here, since it may quote the row."""
    return RowError("malformed_response", f"The answer cannot be read ({type(error).__name__}).")


def _paused(error: PausedTooLongError) -> RowError:
    message = f"Not asked: the server wants no requests for {error.paused_s:.0f} s."
    return RowError("rate_limit", message, retryable=True, retry_after_s=error.paused_s)


def _cancelled(cause: RowError) -> RowError:
    return RowError("cancelled", f"Not asked: another row ended the job ({cause.kind}: {cause.message})")
