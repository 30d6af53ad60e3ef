"""A backend under a job's rules: nothing is asked twice, nothing is sent above the budget, an outage is waited out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Final, Self, TypeVar

from skllm_ray.batch.job.budget import SharedLedger
from skllm_ray.batch.job.patience import FEW, Patience
from skllm_ray.batch.job.terms import Terms, is_unpriced
from skllm_ray.batch.job.unit_guard import UnitGuard, UnitStopped
from skllm_ray.batch.output.journal import Answer, Journal, digest
from skllm_ray.batch.output.progress import Progress
from skllm_ray.llm.base import Backend
from skllm_ray.llm.cancellation import Call
from skllm_ray.tasks.base import LOST, ChatRequest, Embedding, Reply, RowError

_REPORT_S: Final = 1.0
_BUDGET_POLL_S: Final = 0.25
_PAUSES_S: Final = (1.0, 5.0, 10.0, 20.0, 30.0)
_AGAIN: Final = "\0again"

A = TypeVar("A", Reply, Embedding)
Q = TypeVar("Q")


class JournalledBackend(Backend):
    """Asks `backend` for what the journal does not hold.

    Parameters
    ----------
    backend : Backend
        Who is asked.
    journal : Journal
        What is known already, and where answers go.
    ledger : SharedLedger
        The job's.
    worker : str
        Names this unit's attempt.
    terms : Terms
        The job's rules.
    guard : UnitGuard
        Tells before each request whether it may be sent.
    model : str, default=""
        Who is asked, as the ledger tells models apart.
    mark : str, default=""
        Put before keys in the journal, so that two steps of a plan may ask the same.
    counts_rows : bool, default=True
        Whether an answer is a row's result, and not merely a step towards it.
    fails_rows : bool, default=True
        Whether a row that has no answer has failed, and no later step is asked in its place.
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        ledger: SharedLedger,
        worker: str,
        terms: Terms,
        guard: UnitGuard,
        *,
        model: str = "",
        mark: str = "",
        counts_rows: bool = True,
        fails_rows: bool = True,
    ) -> None:
        self._backend = backend
        self._journal = journal
        self._ledger = ledger
        self._worker = worker
        self._terms = terms
        self._guard = guard
        self._model = model
        self._mark = mark
        self._counts_rows = counts_rows
        self._fails_rows = fails_rows
        self._answered = False
        self._news = Progress()
        self._failed_early: Counter[str] = Counter()
        self._reason = ""
        self._ever_answered = False
        self._told_at = time.monotonic()
        self._checked_at = time.monotonic()
        self.total = Progress()

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request; equal ones are asked once, and the copies have ``attempts=0``."""
        requests = self._bounded(requests)
        keys = [self._mark + one.messages[-1]["content"] for one in requests]  # what stands before is always the same
        ask = self._backend.complete_each
        return self._obtain(keys, requests, self._terms.most_usd, ask, streams=self._terms.streams)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, likewise."""
        keys = [f"{self._mark}\0vector\0{text}" for text in texts]
        terms = self._terms
        return self._obtain(
            keys, texts, terms.most_usd_of_text, lambda some, _: self._backend.embed(some), streams=False
        )

    @property
    def answers(self) -> Mapping[str, Answer]:
        """What the journal holds by now, of all steps, by key."""
        return self._journal.answers

    def forget(self, requests: Sequence[ChatRequest]) -> None:
        """Keep no reply to `requests` for later jobs, since the task cannot use it; this job's are in its parts."""
        self._backend.forget(self._bounded(requests))

    def close(self) -> None:
        """Leave the backend open: it serves the next unit."""

    @contextmanager
    def asking_again(self) -> Iterator[Self]:
        """Ask anew for what the journal holds; these answers are no rows' results."""
        mark, counts = self._mark, self._counts_rows
        self._mark, self._counts_rows = f"{_AGAIN}{mark}", False
        try:
            yield self
        finally:
            self._mark, self._counts_rows = mark, counts

    def finish_block(self, n_rows: int, errors: Mapping[str, int], reason: str) -> None:
        """Report what the answers alone did not tell: rows without one of their own, rows that failed, and why."""
        if not self._counts_rows:
            return
        early, self._failed_early = self._failed_early, Counter()
        self._news.rows += n_rows - self._counted
        self._news.errors.update({kind: n - early[kind] for kind, n in errors.items()})
        self._reason = self._reason or reason
        self._counted = 0
        self.tell_if_due()

    def finish(self) -> Progress:
        """Report the rest, and return what this backend did in all."""
        self._tell(last=True)
        return self.total

    # --- inside ---------------------------------------------------------------------------------------------------

    _counted = 0
    _keeps: ClassVar[bool] = True
    """Whether what the journal tells goes to the reply cache."""

    def _bounded(self, requests: Sequence[ChatRequest]) -> Sequence[ChatRequest]:
        if self._terms.max_output_tokens is None:
            return requests
        return [self._terms.bounded(request) for request in requests]

    def _obtain(
        self,
        keys: Sequence[str],
        asked: Sequence[Q],
        most_usd: Callable[[Q], float],
        ask: Callable[[list[Q], Any], list[A]],
        *,
        streams: bool,
    ) -> list[A]:
        """Return an answer for each key: one that is known, or one that is asked for now."""
        questions = dict(zip(keys, asked, strict=True))
        resumed = self._resume(questions)
        known: Any = self._journal.answers
        missing = [key for key in questions if key not in known]
        failed: dict[str, A] = {}
        patience = Patience(self._terms.outage_s, _PAUSES_S)
        first = set(missing)
        while missing:
            began = time.monotonic()
            some = patience.probe(missing)
            answers: dict[str, A] = {}
            for part in self._granted(some, questions, most_usd):
                answers.update(self._ask(part, questions, most_usd, ask, streams=streams))
            bad = {key: answer for key, answer in answers.items() if answer.error is not None}
            failed.update(bad)
            again = {key for key, answer in bad.items() if answer.error is not None and answer.error.retryable}
            missing = [key for key in missing if key not in answers or key in again]
            if not missing or not again:
                patience.answered()
                continue
            answered = len(again) < len(answers) or self._ledger.answered_within(time.monotonic() - began, self._model)
            told: list[Any] = [failed[key].error for key in again]
            error = next((one for one in told if one.kind != "cancelled"), told[0])
            if not self._wait(patience, len(missing), error, answered=answered or _is_there(error, len(missing))):
                break
        if patience.rounds:
            self._ledger.wait_for(self._worker, "")
        found = [known.get(key) or failed[key] for key in keys]
        if len(questions) == len(keys) and len(first) == len(keys):  # neither copies nor what was known
            return found
        return self._marked(keys, found, first, resumed)

    def _resume(self, questions: Mapping[str, Any]) -> set[str]:
        """Take over what an earlier attempt was told."""
        held = self._journal.resumed
        if not held:
            return set()
        found = {key: held[digest(key)] for key in questions if digest(key) in held}
        self._journal.answers.update(found)
        if self._keeps and not self._mark.startswith(_AGAIN):  # of a batch, no cache has them
            self._backend.keep([questions[key] for key in found], list(found.values()))
        return set(found)

    def _marked(self, keys: Sequence[str], found: Sequence[A], first: set[str], resumed: set[str]) -> list[A]:
        """Return the answers, the second and later ones to a question as free copies."""
        seen: set[str] = set()
        marked = []
        for key, answer in zip(keys, found, strict=True):
            fresh = key in first or key in resumed
            copied = (key in seen or not fresh) and answer.error is None
            if copied:
                self._news.duplicates += self._counts_rows
            elif key in resumed:
                self._news.reused += self._counts_rows
            seen.add(key)
            free = replace(answer.usage, cost_usd=0.0)
            marked.append(replace(answer, attempts=0, usage=free) if copied else answer)
        return marked

    def _wait(self, patience: Patience, n_missing: int, error: RowError, *, answered: bool) -> bool:
        """Wait before asking again; return False where the rows are to be given up."""
        pause_s = patience.pause_s(n_missing, answered=answered)
        if pause_s is None:
            if answered or (n_missing < FEW and self._gives_up_few()):
                return False
            raise UnitStopped("outage", f"the model's server did not answer ({error.kind}: {error.message})")
        self._journal.flush()
        self._tell()  # or answers of before would be reported, and count, while the server is away
        if not answered:
            self._ledger.wait_for(self._worker, f"waiting for the server ({error.kind}: {error.message})")
        deadline = time.monotonic() + pause_s
        while time.monotonic() < deadline:
            self._check_stopped()
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        return True

    def _gives_up_few(self) -> bool:
        """Return whether a few rows without an answer are rows that fail: they are where others were answered."""
        return self._ever_answered or self._terms.keep_going or self._ledger.answered_within(math.inf, self._model)

    def _granted(
        self, keys: Sequence[str], questions: Mapping[str, Q], most_usd: Callable[[Q], float]
    ) -> Iterator[Sequence[str]]:
        """Yield the keys in parts, each as large as the budget lets through."""
        at = 0
        while at < len(keys):
            part = keys[at : at + self._terms.block_rows]
            if self._terms.price is None:
                self._check_stopped()
                yield part
                at += len(part)
                continue
            most = [most_usd(questions[key]) for key in part]
            grant = self._ledger.reserve(self._worker, most, self._model)
            if grant.stop:
                raise UnitStopped("budget" if not self._ledger.stopped() else "stopped", self._ledger.stopped())
            if grant.wait:
                time.sleep(_BUDGET_POLL_S)
                continue
            self._journal.intend(dict(zip(part[: grant.n], most, strict=False)))
            self._journal.check()
            if grant.held and not self._ledger.confirm(self._worker):
                self._journal.settle(dict.fromkeys(part[: grant.n], (0.0, 0.0)))
                continue
            yield part[: grant.n]
            at += grant.n

    def _ask(
        self,
        keys: Sequence[str],
        questions: Mapping[str, Q],
        most_usd: Callable[[Q], float],
        ask: Callable[[list[Q], Any], list[A]],
        *,
        streams: bool,
    ) -> dict[str, A]:
        """Ask once for some keys; answers go to the journal as they come."""
        asked = [questions[key] for key in keys]
        self._journal.check()
        try:
            self._guard.check()
        except UnitStopped as stop:
            if self._terms.price is not None and stop.kind != "overtaken":  # then the journal is another run's
                self._journal.settle(dict.fromkeys(keys, (0.0, 0.0)))
                self._ledger.settle(self._worker, 0.0, self._model)
            raise
        with Call("", guard=self._guard).active():
            found = ask(asked, (lambda i, answer: self._take({keys[i]: answer}, urgent=True)) if streams else None)
        answers = dict(zip(keys, found, strict=True))
        if not streams:  # all have come by now: they are counted and written down as a block
            self._take(answers, urgent=False)
        self._settle(answers, questions, most_usd)
        self._guard.check()
        # A job waits for what ends a call but may pass, such as a server that is gone.
        ends = (answer.error for answer in found if answer.error is not None)
        fatal = next((error for error in ends if error.fatal and not error.retryable), None)
        if fatal is not None:
            raise UnitStopped("fatal", f"{fatal.kind}: {fatal.message}")
        return answers

    def _settle(self, answers: Mapping[str, A], questions: Mapping[str, Q], most_usd: Callable[[Q], float]) -> None:
        if self._terms.price is None:
            return
        most = {key: most_usd(questions[key]) for key in answers}
        costs = {key: self._cost(answer, most[key]) for key, answer in answers.items()}
        known, unknown = (sum(parts) for parts in zip(*costs.values(), strict=True))
        self._news.unknown_usd += unknown
        self._journal.settle({key: cost for key, cost in costs.items() if answers[key].error is not None})
        self._ledger.settle(self._worker, known + unknown, self._model)
        if self._terms.capped:
            self._refuse_dearer({key: (cost[0], most[key]) for key, cost in costs.items()})

    def _cost(self, answer: Answer, most: float) -> tuple[float, float]:
        """Return what an answer did cost, and the most that it may have cost where nobody told."""
        if answer.usage.cost_usd is not None:
            return answer.usage.cost_usd, 0.0
        if answer.error is None:  # without an attempt, a reply cache had it
            return 0.0, most if answer.attempts else 0.0
        times = (1 if self._terms.capped else answer.attempts) if answer.error.kind in LOST else 0
        return 0.0, most * times

    def _refuse_dearer(self, costs: Mapping[str, tuple[float, float]]) -> None:
        """Stop where a request cost more than what was set aside: a budget cannot be kept that way."""
        cost, most = max(costs.values(), key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))
        if cost > most * (1 + 1e-9):
            raise UnitStopped(
                "fatal",
                f"a request cost {cost:.6f} USD, where at most {most:.6f} were set aside: the server does not keep to "
                "the bound on an answer, or counts more for a prompt than its bytes, so that the budget cannot be kept "
                "(--max-output-tokens sets a larger bound)",
            )

    def _take(self, answers: Mapping[str, Answer], *, urgent: bool) -> None:
        """Keep answers, and count them. Called from a client's event loop."""
        failed = [answer.error for answer in answers.values() if answer.error is not None]
        good = {key: a for key, a in answers.items() if a.error is None} if failed else answers
        if good:
            self._ever_answered = True
            self._journal.add(good, urgent=urgent, free=self._terms.free)
        news = self._news
        self._answered = self._answered or any(answer.attempts > 0 for answer in good.values())
        if self._counts_rows:
            if self._fails_rows:
                self._fail_early([error for error in failed if not error.retryable and error.kind != "cancelled"])
            news.rows += len(good)
            self._counted += len(good)
        usages = [answer.usage for answer in answers.values() if answer.attempts > 0]
        news.asked += len(usages)
        news.prompt_tokens += sum([usage.prompt_tokens for usage in usages])
        news.completion_tokens += sum([usage.completion_tokens for usage in usages])
        news.cached_tokens += sum([usage.cached_tokens for usage in usages])
        costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
        news.cost_usd += sum(costs)
        if len(costs) < len(usages) and not self._terms.free:
            paid = answers if self._terms.price is None else good
            news.unpriced += sum(map(is_unpriced, paid.values()))
        self.tell_if_due()

    def _fail_early(self, errors: Sequence[RowError]) -> None:
        """Count rows that have failed for good before their block is done, so that a job in vain stops early."""
        if errors:
            kinds = Counter(str(error.kind) for error in errors)
            self._failed_early.update(kinds)
            self._news.errors.update(kinds)
            self._news.rows += len(errors)
            self._counted += len(errors)
            self._reason = self._reason or f"{errors[0].kind}: {errors[0].message}"

    def tell_if_due(self) -> None:
        """Report, once a second."""
        if time.monotonic() - self._told_at >= _REPORT_S:
            self._tell()

    def _tell(self, *, last: bool = False) -> None:
        news, self._news = self._news, Progress()
        self._told_at = time.monotonic()
        self.total.add(news)
        answered, self._answered, reason, self._reason = self._answered, False, self._reason, ""
        self._ledger.report(news, answered=answered, reason=reason, last=last, model=self._model)

    def _check_stopped(self) -> None:
        self._guard.check()
        if time.monotonic() - self._checked_at < _REPORT_S:
            return
        self._checked_at = time.monotonic()
        if reason := self._ledger.stopped():
            raise UnitStopped("stopped", reason)


def _is_there(error: RowError, n_rows: int) -> bool:
    """Return whether a failure shows that the server is there: it answered for a few rows, even if with an error."""
    return n_rows < FEW and error.kind not in {"connection", "timeout"}
