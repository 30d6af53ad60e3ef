"""What of a unit is to be asked: its plan is run with backends that write lines in place of asking."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Final

import pyarrow as pa

from skllm_ray.batch.delivery.queue import Line, UnitQueue, line_name
from skllm_ray.batch.job.budget import SharedLedger
from skllm_ray.batch.job.journalled_backend import A, JournalledBackend, Q
from skllm_ray.batch.job.journalled_plan import journalled
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.unit_guard import UnitGuard
from skllm_ray.batch.job.worker import Begun, Call, Unfinished, UnitWork
from skllm_ray.batch.output.journal import digest
from skllm_ray.batch.output.part import UnitSummary
from skllm_ray.batch.storage import Folder
from skllm_ray.config import Secret
from skllm_ray.execution.block import Backends
from skllm_ray.llm.provider_batches import BatchApi, Form
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError

TRIES: Final = 3
"""Batches that a request may be in before it is asked directly."""
GATHERED: Final = "gathered"
"""What a unit that was gathered is called in place of why it has no part."""
_FIRST_ASKED: Final = 3  # requests of one kind that are asked directly where the first ones tell nothing

_WAITS: Final = RowError("cancelled", "It waits for its batch.")


@dataclass(frozen=True)
class GatherWork(UnitWork):
    """Writes down what of a unit is to be asked by batch. What other steps need meanwhile is asked."""

    batch_terms: Mapping[int, Terms] = field(default_factory=dict)
    """The rules of the steps that are delivered by batch, at the batch's price."""
    of: UnitWork = field(kw_only=True)
    """What is done with the units when all is home."""

    _counts_rows: ClassVar[bool] = False

    def _finish(
        self, begun: Begun, backends: Backends, rules: tuple[SharedLedger, UnitGuard], output: Folder
    ) -> UnitSummary | Unfinished:
        ours = self._journalled(begun, backends, rules)
        try:
            self.of.ask(begun, ours)
            begun.journal.check()
            for backend in ours:
                if isinstance(backend, QueuedBackend):
                    backend.queue.save(output)
        finally:
            for backend in ours:
                backend.finish()
        return Unfinished(GATHERED, "")

    def read(self, call: Call, secrets: Mapping[str, Secret]) -> pa.Table:
        """Return a unit's rows."""
        return self.of.read(call, secrets)

    def _journalled(
        self, begun: Begun, backends: Backends, rules: tuple[SharedLedger, UnitGuard]
    ) -> list[JournalledBackend]:
        ledger, guard = rules
        worker = f"{begun.call.key} gather"

        def made(number: int, *given: Any, **more: Any) -> JournalledBackend:
            api = self.plan[number].spec.batch_api() if number in self.batch_terms else None
            if api is None:
                return JournalledBackend(*given, **more)
            queue = UnitQueue(begun.call.key, number)
            return QueuedBackend(*given, api=api, queue=queue, at_price=self.batch_terms[number], **more)

        rules_of_all = (self.terms, guard)
        return journalled(
            self.plan, backends, begun.journal, ledger, worker, rules_of_all, counts_rows=False, make=made
        )


class QueuedBackend(JournalledBackend):
    """Answers what the journal holds, and writes down the rest to be asked by batch.

    Parameters
    ----------
    *given, **more
        What a `JournalledBackend` takes; it asks the first requests directly, which tell what the server refuses.
    api : BatchApi
        How lines are written.
    queue : UnitQueue
        Takes them.
    at_price : Terms
        The step's rules, at the batch's price.
    """

    _keeps: ClassVar[bool] = False

    def __init__(self, *given: Any, api: BatchApi, queue: UnitQueue, at_price: Terms, **more: Any) -> None:
        super().__init__(*given, **more)
        self._api = api
        self.queue = queue
        self._at_price = at_price

    def _obtain(
        self,
        keys: Sequence[str],
        asked: Sequence[Q],
        most_usd: Callable[[Q], float],
        ask: Callable[[list[Q], Any], list[A]],
        *,
        streams: bool,
    ) -> list[A]:
        questions: dict[str, Any] = dict(zip(keys, asked, strict=True))
        known: Any = self._known(questions)
        missing = [key for key in questions if key not in known]
        held = self._backend.recall([questions[key] for key in missing])
        cached = [key for key, is_held in zip(missing, held, strict=True) if is_held]
        if cached:
            super()._obtain(cached, [questions[key] for key in cached], most_usd, ask, streams=streams)
            missing = [key for key in missing if key not in known]
        tried: dict[str, A] = {}
        while missing and self._is_new(questions[missing[0]]) and len(tried) < _FIRST_ASKED:
            key = missing.pop(0)
            tried[key] = super()._obtain([key], [questions[key]], most_usd, ask, streams=streams)[0]
        for key in missing:
            self._queue(key, questions[key])
        waits: Any = Embedding(error=_WAITS) if asked and isinstance(asked[0], str) else Reply(error=_WAITS)
        return [known.get(key) or tried.get(key) or waits for key in keys]

    def _known(self, questions: Mapping[str, Any]) -> Mapping[str, Any]:
        self._resume(questions)
        return self._journal.answers

    def _is_new(self, asked: Any) -> bool:
        return self._api.is_asked_singly and not self._api.knows(asked)

    def _queue(self, key: str, asked: Any) -> None:
        """Write down a request, unless batches brought nothing so often that it is left to the direct way."""
        hashed, form = digest(key), Form.of(asked)
        if self._journal.tried[hashed] >= TRIES and self._api.is_asked_singly:
            return
        name = form_name(form)
        unbounded = asked if isinstance(asked, str) else replace(asked, answer_bound=None)  # nobody asks it again
        line = self._api.line(line_name(self.queue.unit, hashed, name), unbounded)
        if line is None:
            return
        terms = self._at_price
        most = terms.most_usd_of_text(asked) if isinstance(asked, str) else terms.most_usd(asked)
        self.queue.forms[name] = form
        self.queue.lines.append(Line(self.queue.unit, hashed, name, most, _tokens(asked), line))


def _tokens(asked: ChatRequest | str) -> int:
    """Return about how many tokens a prompt has: a provider's queue counts them, and not the answer's."""
    texts = [asked] if isinstance(asked, str) else [message["content"] for message in asked.messages]
    return 1 + sum(len(text.encode("utf-8", "replace")) for text in texts) // 4


def form_name(form: Form) -> str:
    """Return the hash by which lines name a form."""
    return hashlib.blake2b(json.dumps(asdict(form), sort_keys=True).encode(), digest_size=4).hexdigest()
