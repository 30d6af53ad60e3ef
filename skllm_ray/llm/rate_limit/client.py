"""Where a process's requests wait until the shared limit lets them through. One for each open backend. No SDK here."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from skllm_ray.config import RateLimit
from skllm_ray.llm.cancellation import end_call, not_sent
from skllm_ray.llm.rate_limit.adaptive_concurrency import FIRST
from skllm_ray.llm.rate_limit.bucket import SERVED_LATELY_S
from skllm_ray.llm.rate_limit.installed import current_limiter, tell_observer
from skllm_ray.llm.rate_limit.messages import (
    HEARTBEAT_S,
    LARGEST_LEASE,
    LATE_S,
    PERMIT_S,
    SHARE_S,
    WINDOW_S,
    Grant,
    Refusal,
    Released,
    Report,
)
from skllm_ray.llm.rate_limit.permits import News, NotLetThroughError, Permit, Run, Unused, Waiter, grouped
from skllm_ray.tasks.base import RowError

_FAREWELL_S = 2.0


class Gate:
    """Lets requests through as the limiter grants. All of it runs on one event loop.

    Parameters
    ----------
    bucket : str
        What shares the quota; it holds no secret.
    limit : RateLimit or None
        What this process declares.
    hold_s : float
        The longest that one try may take, in seconds.
    longest_pause_s : float
        A longer pause than this fails whoever waits.
    first : int, default=32
        Requests at once to begin with, where nobody declares how many there may be.
    longest_look_s : float, default=4
        The longest time between two looks for a server that is not there.
    """

    def __init__(
        self,
        bucket: str,
        limit: RateLimit | None,
        hold_s: float,
        longest_pause_s: float,
        first: int = FIRST,
        longest_look_s: float = 4.0,
    ) -> None:
        self._first = first
        self._look_s = HEARTBEAT_S
        self._bucket = bucket
        self._limit = limit
        self._known = RateLimit()  # what all who share the bucket declared, as the limiter says
        self._hold_s = hold_s
        self._longest_pause_s = longest_pause_s
        self._longest_look_s = longest_look_s
        self._holder = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._waiters: deque[Waiter] = deque()
        self._permits: deque[Unused] = deque()
        self._out: dict[int, Permit] = {}
        self._runs: set[Run] = set()
        self.served_at = float("-inf")
        self.trouble = ""
        """Why the server is waited for; all who share the bucket are told."""
        self._past: deque[tuple[float, Released]] = deque()
        self._news = News()
        self._number = 0
        self._epoch = ""
        self._concurrency = 0
        self._renewed_at = float("-inf")
        self._paused_until = 0.0
        self._not_before = 0.0
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def enter(
        self, call: str | None, ended: RowError | None = None, guard: Callable[[], RowError | None] | None = None
    ) -> Run:
        """Return a new run; one of a call that has `ended` is over before it begins."""
        run = Run(call, asyncio.get_running_loop().create_future(), guard)
        if ended is not None:
            run.stop.set_result(ended)
        self._runs.add(run)
        return run

    def leave(self, run: Run) -> None:
        """Forget a run."""
        self._runs.discard(run)

    @property
    def oldest_sent_at(self) -> float | None:
        """When the oldest request in flight was sent; None where none is."""
        return min((permit.sent_at for permit in self._out.values()), default=None)

    def end(self, run: Run, error: RowError) -> None:
        """Let a run send nothing more, nor any other run of its call, in all processes."""
        self._stop(run, error)
        if run.call is not None:
            self._end_call(run.call, error)
            self._news.ended.append((run.call, error))
            self._wake.set()

    async def acquire(self, tokens: int, run: Run | None = None, *, again: bool = False) -> Permit:
        """Wait until a request of `tokens` may be sent; one that is sent `again` goes before others.

        Raises
        ------
        NotLetThroughError
            If the run was ended, the bucket is paused for longer than a row may take, or the limiter failed.
        """
        if run is not None and run.stop.done():
            raise NotLetThroughError(not_sent(run.stop.result()))
        waiter = Waiter(asyncio.get_running_loop().create_future(), tokens, run)
        if again:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._serve()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        try:
            permit = await waiter.ready
        except asyncio.CancelledError:
            if waiter.ready.done() and not waiter.ready.cancelled() and waiter.ready.exception() is None:
                self._return(waiter.ready.result())
            raise
        if run is not None and run.guard is not None and not run.stop.done() and (forbids := run.guard()) is not None:
            self._stop(run, forbids)
        if run is not None and run.stop.done():
            self._return(permit)
            raise NotLetThroughError(not_sent(run.stop.result()))
        return permit

    def release(self, permit: Permit, used: int | None, *, served: bool = True, absent: bool = False) -> None:
        """Tell what became of a request.

        Parameters
        ----------
        permit : Permit
            The right to send it.
        used : int or None
            Its tokens; None where nobody knows.
        served : bool, default=True
            Whether the server answered for good, and not with a failure that may pass.
        absent : bool, default=False
            Whether there was no server.
        """
        now = self._now()
        self._out.pop(id(permit), None)
        date = min(now, permit.sent_at + LATE_S)
        tokens = permit.tokens if used is None else used
        self._news.released.append((date, Released(permit.lease, 1, permit.tokens, tokens, 0.0, 1)))
        self._news.done += 1
        self._news.seconds += now - permit.sent_at
        if served:
            self._news.served = True
            self.served_at = now
        tell_observer(now - permit.sent_at)
        if absent and float("-inf") < self.served_at < permit.sent_at - SERVED_LATELY_S:
            self._news.absent_at = permit.sent_at
            self._hold(now + 0.05)
        if permit.left != (None, None):
            self._news.left = permit.left
        if permit.refusal_s is not None:
            asked = None if permit.refusal_s < 0 else permit.refusal_s
            self._news.refusals.append((permit.sent_at, asked))
            self._hold(now + (asked or 0.05))
        self._serve()

    async def close(self) -> None:
        """Tell the limiter that nothing is in flight any more; the loop's other tasks are over."""
        for unused in self._permits:
            self._news.released.append((self._now(), Released(unused.permit.lease, 0, unused.permit.tokens, 0, 0.0, 1)))
        self._permits.clear()
        self._waiters.clear()
        self._out.clear()
        if self._number:
            with suppress(Exception):
                async with asyncio.timeout(_FAREWELL_S):
                    await current_limiter().exchange(self._report(self._now())[0])

    # --- inside ---------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _hold(self, until: float) -> None:
        """Send nothing before the limiter has been told, nor before then."""
        self._paused_until = max(self._paused_until, until)
        self._wake.set()

    @property
    def _metered(self) -> bool:
        return self._known.requests_per_minute is not None or self._known.tokens_per_minute is not None

    def _set_aside(self, tokens: int) -> int:
        """Return what a request of `tokens` takes of the quota: never more than there is."""
        most = self._known.tokens_per_minute
        return tokens if most is None or tokens < most else most

    def _stop(self, run: Run, error: RowError) -> None:
        if run.stop.done():
            return
        run.stop.set_result(error)
        for waiter in self._waiters:
            if waiter.owner is run and not waiter.ready.done():
                waiter.ready.set_exception(NotLetThroughError(not_sent(error)))
        self._wake.set()

    def _end_call(self, call: str, error: RowError) -> None:
        end_call(call, error)
        for run in self._runs:
            if run.call == call:
                self._stop(run, error)

    def _return(self, permit: Permit) -> None:
        """Give a permit back unused."""
        self._out.pop(id(permit), None)
        if permit.lease:
            self._news.released.append((self._now(), Released(permit.lease, 0, permit.tokens, 0, 0.0, 1)))
        self._serve()

    def _serve(self) -> None:
        """Let through whoever may go now."""
        now = self._now()
        while self._waiters and self._waiters[0].ready.done():  # cancelled
            self._waiters.popleft()
        while self._waiters and now >= self._paused_until and len(self._out) < self._usable(now):
            waiter = self._waiters[0]
            permit = self._next_permit(waiter.tokens, now)
            if permit is None:
                break
            self._waiters.popleft()
            if waiter.ready.done():
                if permit.lease:
                    self._permits.appendleft(Unused(permit, now + PERMIT_S))
                continue
            permit.sent_at = now
            self._out[id(permit)] = permit
            waiter.ready.set_result(permit)
        if self._waiters and ((self._metered and not self._permits) or self._usable(now) == 0):
            self._wake.set()

    def _usable(self, now: float) -> int:
        return self._concurrency if now < self._renewed_at + SHARE_S else 0

    def _next_permit(self, tokens: int, now: float) -> Permit | None:
        if not self._metered:
            return Permit(0, tokens)
        while self._permits:
            unused = self._permits.popleft()
            if now < unused.ends and unused.permit.tokens >= self._set_aside(tokens):
                return unused.permit
            self._news.released.append((now, Released(unused.permit.lease, 0, unused.permit.tokens, 0, 0.0, 1)))
        return None

    async def _run(self) -> None:
        """Exchange reports for grants; where that fails for a reason that nobody foresaw, let no row wait for ever."""
        try:
            await self._exchange()
        except TimeoutError:
            message = f"Not asked: what keeps the shared limit gave no answer for {self._longest_pause_s:g} s."
            self._fail_waiters(RowError("cancelled", message, fatal=True))
        except Exception as error:  # noqa: BLE001  the limiter may be anyone's
            message = f"Not asked: the shared limit cannot be asked ({type(error).__name__})."
            self._fail_waiters(RowError("cancelled", message, fatal=True))

    async def _exchange(self) -> None:
        """Exchange while anything waits, is in flight, or is unreported."""
        while self._waiters or self._out or self._permits or self._news.released or self._news.done or self._news.ended:
            asked_at = self._now()
            report, wanted = self._report(asked_at)
            async with asyncio.timeout(self._longest_pause_s):
                grant = await current_limiter().exchange(report)
            if grant.epoch != self._epoch and self._epoch and not report.past:
                await self._tell_the_past(grant, report)
                continue
            self._apply(grant, wanted, asked_at)
            self._serve()
            await self._rest()

    async def _tell_the_past(self, grant: Grant, report: Report) -> None:
        """Speak to a limiter that is new: it knows nothing of what this process used and holds."""
        now = self._now()
        held = [Released(0, 1, permit.tokens, permit.tokens, 0.0, 1) for permit in self._out.values() if permit.lease]
        past = [replace(item, age_s=now - date, lease=0) for date, item in self._past]
        self._epoch = grant.epoch
        past = past or [Released(0, 0, 0, 0, 0.0, 0)]
        self._number += 1
        told = replace(report, number=self._number, epoch=grant.epoch, past=(*past, *held), known=self._known)
        told = replace(told, released=(), wanted=())
        self._apply(await current_limiter().exchange(told), [], now)

    def _report(self, now: float) -> tuple[Report, list[int]]:
        while self._permits and now >= self._permits[0].ends:
            permit = self._permits.popleft().permit
            self._news.released.append((now, Released(permit.lease, 0, permit.tokens, 0, 0.0, 1)))
        news, self._news = self._news, News()
        released = grouped(news.released, now)
        self._past.extend((now - item.age_s, item) for item in released if item.requests)
        while self._past and self._past[0][0] < now - WINDOW_S:
            self._past.popleft()
        free = self._usable(now) - len(self._out) - len(self._permits)
        may_ask = self._metered and now >= max(self._not_before, self._paused_until)
        count = max(0, min(free, len(self._waiters) - len(self._permits), LARGEST_LEASE)) if may_ask else 0
        skip = len(self._permits)
        wanted = [self._set_aside(self._waiters[index].tokens) for index in range(skip, skip + count)]
        unleased = [permit.tokens for permit in self._out.values() if not permit.lease]
        self._number += 1
        report = Report(
            bucket=self._bucket,
            holder=self._holder,
            number=self._number,
            limit=self._limit,
            waiting=len(self._waiters),
            in_flight=len(self._out),
            wanted=tuple(wanted),
            hold_s=self._hold_s,
            released=released,
            refusals=tuple(Refusal(now - sent, asked) for sent, asked in news.refusals),
            done=news.done,
            latency_s=news.seconds / news.done if news.done else None,
            served=news.served,
            unleased=(len(unleased), sum(unleased)),
            external=news.left,
            calls=tuple({run.call for run in self._runs if run.call is not None}),
            ended=tuple(news.ended),
            epoch=self._epoch,
            first=self._first,
            trouble=self.trouble,
            absent=None if news.absent_at is None else (now - news.absent_at, self._longest_look_s),
        )
        return report, wanted

    def _apply(self, grant: Grant, wanted: list[int], asked_at: float) -> None:
        now = self._now()
        self._epoch, self._known, self._look_s = grant.epoch, grant.limit, grant.look_s
        self.served_at = max(self.served_at, asked_at - grant.served_s)
        for call, error in grant.ended:
            self._end_call(call, error)
        self._concurrency, self._renewed_at = grant.concurrency, asked_at
        if grant.paused_s > 0:
            self._paused_until = max(self._paused_until, now + grant.paused_s)
        if self._paused_until - now > self._longest_pause_s:
            pause_s = self._paused_until - now
            message = f"Not asked: the server wants no requests for {pause_s:.0f} s."
            self._fail_waiters(RowError("rate_limit", message, retryable=True, retry_after_s=pause_s))
        self._not_before = now + grant.wait_s if wanted else now
        for tokens in wanted[: grant.permits]:
            self._permits.append(Unused(Permit(grant.lease, self._set_aside(tokens)), asked_at + PERMIT_S))

    def _fail_waiters(self, error: RowError) -> None:
        for waiter in self._waiters:
            if not waiter.ready.done():
                waiter.ready.set_exception(NotLetThroughError(error))
        self._waiters.clear()

    async def _rest(self) -> None:
        """Sleep until there is something to tell or to ask."""
        now = self._now()
        self._wake.clear()
        delay = self._look_s
        if self._waiters:
            ahead = self._paused_until - now
            if ahead > 0:
                delay = min(delay, ahead)
            elif self._usable(now) == 0:
                delay = 0.1
            elif self._metered and not self._permits and len(self._out) < self._usable(now):
                delay = self._not_before - now
        elif not self._out and not self._permits:
            delay = 0.02  # the last report; who comes at once is served before it
        if delay > 0:
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:  # never more often than the limiter asked for
                await asyncio.sleep(min(max(0.002, self._not_before - self._now()), HEARTBEAT_S))
        self._serve()
