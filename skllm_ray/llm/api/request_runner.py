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
from skllm_ray.llm.api.outage_notice import OutageNotice
from skllm_ray.llm.api.retry_policy import _LONGEST_SILENCE_S, _SILENT, RetryPolicy, _Streak
from skllm_ray.llm.cancellation import Call, active_call
from skllm_ray.llm.rate_limit.adaptive_concurrency import FIRST
from skllm_ray.llm.rate_limit.bucket import LONGEST_PAUSE_S
from skllm_ray.llm.rate_limit.client import Gate
from skllm_ray.llm.rate_limit.permits import NotLetThroughError, Permit, Run
from skllm_ray.tasks.base import LOST, Embedding, Reply, RowError, Usage

_MOST_REFUSALS = 3  # of a row by a quota, before it is looked at whether others are served meanwhile
_NEVER = float("-inf")
_SHARE_OF_A_TRY = 0.25
_LONGEST_LOOK_S = 8.0  # between two looks of a row for a server that is not there
_LONGEST_SHARED_LOOK_S = 4.0  # between two of all rows
_FEWEST_LOOKS = 25  # within a row's time
_LOOK_S = 1.0  # between two looks whether there is something to say
_MOST_ROWS = 1024  # rows of one call that wait or are in flight together

Q = TypeVar("Q")
R = TypeVar("R", Reply, Embedding)


@dataclass(frozen=True, slots=True)
class RequestKind(Generic[Q, R]):
    """How to ask one kind of question."""

    ask: Callable[[Q, Permit], Awaitable[R | None]]
    """Asks once and returns an answer, whatever happens; None where it should be asked again in another way."""
    cost: Callable[[Q], int]
    """Estimates the tokens of a question and its answer."""
    empty: Callable[[], R]
    """Makes an answer of the right type."""
    turn: Callable[[Q], AbstractAsyncContextManager[None]] = lambda _: nullcontext()
    """Lets a question begin, and holds what has to wait for it."""
    most_tries: Callable[[Q], int | None] = lambda _: None
    """How often a question is asked at most; None leaves it to the patience."""


class _Tries:
    """Counts a row's tries: those that a quota refused, and those that found no server, cost it time alone."""

    def __init__(self, most: int, waits: bool) -> None:
        self.left = float(most)
        self._waits = waits
        self.pauses = 0
        self.is_alone = False
        """Whether a quota refuses this row again and again while it serves others, who need not wait for it."""
        self._failed_at = _NEVER
        self._refusals = 0
        self._refused_at = _NEVER

    def count(self, failure: RowError, now: float, served_at: float) -> None:
        """Count a failure.

        Where a server that had served is not there, it is starting again; where it closes the connection, it may be.
        Where it serves others between two failures of a row, it is the row.
        """
        share = 0.0 if failure.down else _SHARE_OF_A_TRY if failure.kind == "connection" else 1.0
        before, self._failed_at = self._failed_at, now
        if failure.kind == "rate_limit":
            self.pauses += self.is_alone
            return
        self.pauses += 1
        is_starting = self._waits and _NEVER < served_at <= (now if before == _NEVER else before)
        self.left -= share if is_starting else 1.0

    def refused_again(self, served_at: float, now: float) -> bool:
        """Take a quota's refusal; return whether this row is to wait alone."""
        if self._refusals == 0:
            self._refused_at = now
        self._refusals += 1
        self.is_alone = self._refusals > _MOST_REFUSALS and served_at > self._refused_at
        return self.is_alone


class RequestRunner:
    """Runs requests on an event loop in a thread of its own, so that it works under any other running loop.

    Parameters
    ----------
    patience : RetryPolicy
        How long and how often to try.
    bucket : str
        What shares the quota.
    limit : RateLimit or None
        The declared quota.
    where : str, default="the server"
        The server's address, for messages.
    first : int, default=32
        Requests at once to begin with, where nobody declares how many there may be.
    """

    def __init__(
        self,
        patience: RetryPolicy,
        bucket: str,
        limit: RateLimit | None,
        where: str = "the server",
        first: int = FIRST,
    ) -> None:
        self._patience = patience
        self._where = where
        self._closed = False
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        look_s = min(_LONGEST_SHARED_LOOK_S, patience.deadline_s / _FEWEST_LOOKS)
        self._gate = Gate(bucket, limit, patience.try_s, max(patience.deadline_s, LONGEST_PAUSE_S), first, look_s)
        silence_s = min(_LONGEST_SILENCE_S, patience.deadline_s)
        self._silence = _Streak(patience.deadline_s if patience.waits else silence_s, silence_s)
        self._unserved = _Streak(patience.deadline_s, patience.deadline_s)
        self._latest_call: str | None = None
        self._notice = OutageNotice(where, patience.deadline_s) if patience.waits else None
        self._thread = threading.Thread(target=self._loop.run_forever, name="skllm-ray-requests", daemon=True)
        self._thread.start()

    def run(
        self, questions: Sequence[Q], kind: RequestKind[Q, R], tell: Callable[[int, R], None] | None = None
    ) -> list[R]:
        """Return one answer per question, in order. After a fatal one, what was not asked yet is cancelled.

        The same holds for all other blocks of the call that this thread works for, in all processes.

        `tell` gets every answer when it arrives, with the question's position; it is called on the event loop.
        """
        with self._closing:
            if self._closed:
                raise RuntimeError("This backend was closed.")
            future = asyncio.run_coroutine_threadsafe(self._run(questions, kind, tell, active_call()), self._loop)
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

    async def _run(
        self, questions: Sequence[Q], kind: RequestKind[Q, R], tell: Callable[[int, R], None] | None, call: Call | None
    ) -> list[R]:
        answers = [kind.empty()] * len(questions)
        rows = iter(enumerate(questions))
        most = min(_MOST_ROWS, len(questions))
        if call is not None and call.max_in_flight is not None:
            most = min(most, call.max_in_flight)
        run = self._gate.enter(None) if call is None else self._gate.enter(call.name or None, call.ended, call.guard)
        if run.call is None or run.call != self._latest_call:
            self._latest_call = run.call
            self._silence.end()
            self._unserved.end()
        watch = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(most):
                    group.create_task(self._work(rows, answers, kind, run, tell))
        finally:
            watch.cancel()
            self._gate.leave(run)
        return answers

    async def _watch(self) -> None:
        """Say where the server is waited for: a batch job does so by itself."""
        while self._notice is not None:
            await asyncio.sleep(_LOOK_S)
            now = self._loop.time()
            self._gate.trouble = self._notice.look(now, self._gate.served_at, self._gate.oldest_sent_at)

    async def _work(
        self,
        rows: Iterator[tuple[int, Q]],
        answers: list[R],
        kind: RequestKind[Q, R],
        run: Run,
        tell: Callable[[int, R], None] | None,
    ) -> None:
        for row, question in rows:
            async with kind.turn(question):
                answer = await self._ask_with_retries(question, kind, run)
            error = answer.error
            if error is not None and error.fatal:
                self._gate.end(run, error)
            answers[row] = answer
            if tell is not None:
                tell(row, answer)

    async def _ask_with_retries(self, question: Q, kind: RequestKind[Q, R], run: Run) -> R:
        """Ask until there is an answer, or asking again cannot help, or time, tries or the job are over."""
        answer, attempts, deadline = kind.empty(), 0, None
        late = self._late(self._patience.deadline_s)
        tries = _Tries(kind.most_tries(question) or self._patience.max_tries, self._patience.waits)
        while True:
            refused = late
            try:
                async with asyncio.timeout_at(deadline):
                    permit = await self._gate.acquire(
                        kind.cost(question), run, again=attempts > 0 and not tries.is_alone
                    )
            except (NotLetThroughError, TimeoutError) as error:
                refused = error.error if isinstance(error, NotLetThroughError) else late
                # What the server said before tells more than that the time is over.
                return answer if answer.error is not None else replace(answer, error=refused, attempts=attempts)
            deadline = deadline or permit.sent_at + self._patience.deadline_s
            attempts += 1
            found = await self._try(question, kind, permit, deadline, tries)
            if found is None:
                continue
            before, failure = answer.error, found.error
            answer = replace(found, attempts=attempts, usage=_total(answer.usage, found))
            if failure is None or not failure.retryable or failure.fatal:
                return answer
            if failure.kind in LOST and not self._patience.repeats_lost and not failure.down:
                return answer
            now = self._loop.time()
            if now >= deadline and failure.kind == "timeout":
                return replace(answer, error=before or late)
            tries.count(failure, now, self._gate.served_at)
            pause_s = self._pause_s(tries.pauses, failure)
            if tries.left <= 0 or now + pause_s >= deadline:
                return answer
            if failure.kind != "rate_limit" or tries.is_alone:  # else, the gate pauses for all
                await asyncio.wait([run.stop], timeout=pause_s)

    async def _try(
        self, question: Q, kind: RequestKind[Q, R], permit: Permit, deadline: float, tries: _Tries
    ) -> R | None:
        """Ask once. A failure is fatal where it shows that the server is gone."""
        found: R | None = None
        ends = min(deadline, permit.sent_at + self._patience.try_s)
        try:
            async with asyncio.timeout_at(ends):
                found = await kind.ask(question, permit)
        except TimeoutError:
            found = replace(kind.empty(), error=self._late(self._patience.try_s))
        except Exception as error:  # noqa: BLE001  the last resort: one odd answer must not lose the others
            found = replace(kind.empty(), error=_unforeseen(error))
        finally:
            failure = None if found is None else found.error
            if permit.refusal_s is not None and tries.refused_again(self._gate.served_at, self._loop.time()):
                permit.refusal_s = None  # others are served: this row waits by itself
            is_served, is_absent = failure is None or not failure.retryable, failure is not None and failure.down
            self._gate.release(permit, _used(found), served=is_served, absent=is_absent)
        if found is None or failure is None or not failure.retryable:
            return found
        if self._notice is not None:
            self._notice.failed(failure, self._loop.time())
        if failure.kind not in _SILENT:
            self._silence.end()
        for streak in (self._silence, self._unserved) if failure.kind in _SILENT else (self._unserved,):
            if streak.goes_on(permit.sent_at, self._loop.time(), self._gate.served_at):
                return replace(found, error=_gone(failure, streak.seconds))
        return found

    def _late(self, seconds: float) -> RowError:
        return RowError("timeout", f"No answer within {seconds:g} s from {self._where}.", retryable=True)

    def _pause_s(self, n_pauses: int, failure: RowError) -> float:
        if failure.retry_after_s is not None:
            return failure.retry_after_s
        most_s = _LONGEST_LOOK_S if failure.down else LONGEST_PAUSE_S
        return random.uniform(0, min(most_s, self._patience.backoff_s * 2 ** (min(n_pauses, 30) - 1)))

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
    return None if answer is None else answer.usage.prompt_tokens + answer.usage.completion_tokens or None


def _total(before: Usage, answer: Reply | Embedding) -> Usage:
    """Return what a row cost in all its tries. A failure that told nothing adds nothing."""
    now = answer.usage
    if before == Usage() or (answer.error is not None and now == Usage()):
        return now if before == Usage() else before
    known = before.cost_usd is not None and now.cost_usd is not None
    return Usage(
        before.prompt_tokens + now.prompt_tokens,
        before.completion_tokens + now.completion_tokens,
        before.cached_tokens + now.cached_tokens,
        (before.cost_usd or 0.0) + (now.cost_usd or 0.0) if known else None,
    )


def _unforeseen(error: Exception) -> RowError:
    """Return the error of an answer that nobody could read; what it says stays here, since it may quote the row."""
    return RowError("malformed_response", f"The answer cannot be read ({type(error).__name__}).")


def _gone(error: RowError, seconds: float) -> RowError:
    """Return the failure that ends a call, since trying every row would take hours."""
    told = f"{error.message.rstrip('. ')}. No row was served for {seconds:g} s."
    return replace(error, message=f"{told} SKLLMConfig.set_timeouts(…) gives a server more.", fatal=True)
