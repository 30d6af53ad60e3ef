"""Orders: waiting lines become a file, and the file a batch that is bought once."""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

from skllm_ray.batch.delivery.batch_records import ordered_keys, withdraw_intents, write_intents
from skllm_ray.batch.delivery.queue import Line, QueuedFile, queued
from skllm_ray.batch.storage import Folder
from skllm_ray.errors import AmbiguousSubmission, JobFailedError, OutputInUseError, SkllmRayError
from skllm_ray.llm.provider_batches import BatchApi, BatchService, BatchSpec, Form, ProviderBatch
from skllm_ray.llm.submissions import BEFORE_POST, GracePeriod, SubmissionStore, submit
from skllm_ray.llm.submissions.submit import settle

GRACE: Final = GracePeriod()
_BEFORE_POST: Final = frozenset({"start", "intent", "looked", "uploaded"})

Store = SubmissionStore[ProviderBatch]


class Waiting:
    """The lines that an output's queue holds, in order, to be taken as orders have room.

    Parameters
    ----------
    output : Folder
        The output.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output
        self._files = queued(output)
        self._lines: Iterator[Line] = iter(())
        self._next: Line | None = None
        self.forms: dict[str, Form] = {}
        self.step = -1

    @property
    def units(self) -> set[str]:
        """Whose lines the queue held."""
        return {file.unit for file in self._files}

    def peek(self) -> Line | None:
        """Return the next line, which stays; None where there is none. `step` is its step."""
        while self._next is None:
            self._next = next(self._lines, None)
            if self._next is None and not self._open():
                return None
        return self._next

    def take(self) -> None:
        """Take the next line."""
        self._next = None

    def _open(self) -> bool:
        if not self._files:
            return False
        file: QueuedFile = self._files.pop(0)
        if file.step != self.step:
            self.step, self.forms = file.step, {}
        forms, self._lines = file.read(self._output)
        self.forms |= forms
        return True


@dataclass
class Room:
    """How much an order may hold besides what a file may."""

    usd: float | None = None
    """The money that is left; None for no limit."""
    tokens: int | None = None
    """The tokens that the provider's queue takes; None where that is not known."""


@dataclass
class Draft:
    """An order that is being made up."""

    step: int
    costs: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    forms: dict[str, Form] = field(default_factory=dict)
    n_lines: int = 0
    n_bytes: int = 0
    tokens: int = 0
    usd: float = 0.0

    def fits(self, line: Line, api: BatchApi, room: Room) -> bool:
        """Return whether there is room for a line."""
        limits = api.limits
        if self.n_lines >= limits.max_lines or self.n_bytes + len(line.content) > limits.max_bytes:
            return False
        if room.tokens is not None and self.n_lines and self.tokens + line.tokens > room.tokens:
            return False
        return room.usd is None or self.usd + line.most_usd <= room.usd

    def add(self, line: Line, form: Form) -> None:
        """Take a line."""
        self.costs[line.unit][line.key] = line.most_usd
        self.forms[line.form] = form
        self.n_lines += 1
        self.n_bytes += len(line.content)
        self.tokens += line.tokens
        self.usd += line.most_usd


class Orders:
    """Makes orders of an output's waiting lines, and settles those that earlier runs left.

    Parameters
    ----------
    output : Folder
        The output.
    records : SubmissionStore
        Where orders are kept.
    apis : dict of int to BatchApi
        How the batches of each step are made.
    open_service : callable
        Returns the open service of a batch.
    check : callable
        Raises where the run may not go on.
    price_share : float or None
        What a batch costs, as a share of the standard price.
    keep_files : bool
        Whether the provider keeps the files.
    """

    def __init__(
        self,
        output: Folder,
        records: Store,
        apis: dict[int, BatchApi],
        open_service: Callable[[BatchSpec], BatchService],
        check: Callable[[], None],
        *,
        price_share: float | None = None,
        keep_files: bool = False,
    ) -> None:
        self._output = output
        self._records = records
        self._apis = apis
        self._open = open_service
        self._check = check
        self._share = price_share
        self._keep_files = keep_files

    def settle(self) -> list[ProviderBatch]:
        """Return the batches that may still bring answers; what was never sent is taken out of the journals.

        Raises
        ------
        AmbiguousSubmission
            If one may have been sent, and does not appear at the provider.
        """
        records = {record.key: record for record in self._records.jobs()}
        for key in sorted(ordered_keys(self._output) - records.keys()):  # the process died before it wrote down more
            self._refuse_lost(key)
            withdraw_intents(self._output, key)
        found = []
        for record in records.values():
            if record.state in BEFORE_POST:
                self._withdraw(record)
            elif record.is_live:
                found.append(self._found(record))
        return found

    def place(self, waiting: Waiting, room: Room) -> ProviderBatch | None:
        """Order as many of the waiting lines as there is room for; return the batch, or None where none fits."""
        first = waiting.peek()
        if first is None:
            return None
        step = waiting.step
        draft, api = Draft(step), self._apis[step]
        with tempfile.NamedTemporaryFile(prefix="skllm-ray-", suffix=".jsonl") as file:
            hashed = hashlib.sha256()
            while (line := waiting.peek()) is not None and waiting.step == step and draft.fits(line, api, room):
                draft.add(line, waiting.forms[line.form])
                file.write(line.content)
                hashed.update(line.content)
                waiting.take()
            file.flush()
            return self._buy(draft, api, hashed.hexdigest(), file) if draft.n_lines else None

    def on_step(self, step: str) -> None:
        """Told every step of an order: ``drafted``, and those of `submissions.submit`."""

    # --- inside ---------------------------------------------------------------------------------------------------

    def _buy(self, draft: Draft, api: BatchApi, content_sha256: str, file: IO[Any]) -> ProviderBatch:
        forms = tuple(draft.forms.values())
        spec = api.order(
            embeds=any(form.embeds for form in forms),
            content_sha256=content_sha256,
            nonce=uuid.uuid4().hex,
            n_lines=draft.n_lines,
            n_bytes=draft.n_bytes,
            tokens=draft.tokens,
            most_usd=draft.usd,
            price=api.price(self._share),
            step=draft.step,
            forms=forms,
            ordered_at=time.time(),
            keep_files=self._keep_files,
        )
        wanted = ProviderBatch(spec=spec)
        self._check()
        self.on_step("drafted")
        write_intents(self._output, spec.key, draft.costs)
        self._check()
        service = self._open(spec)
        try:
            return submit(wanted, Path(file.name), self._records, service, patience=GRACE, on_step=self._step)
        except AmbiguousSubmission as error:
            raise self._explained(error) from None
        except OutputInUseError:  # the journals are another run's by now
            raise
        except SkllmRayError:
            record = self._records.read(spec.key) or wanted
            if record.state in BEFORE_POST:  # nothing was bought
                self._withdraw(record, service)
            raise
        finally:
            service.close()

    def _step(self, step: str) -> None:
        if step in _BEFORE_POST:
            self._check()
        self.on_step(step)

    def _refuse_lost(self, key: str) -> None:
        """Raise where the provider has a batch of which the journals tell and no record does."""
        for api in self._apis.values():
            service = self._open(api.order(embeds=False, content_sha256="", nonce=""))
            try:
                found = service.find(key)
            finally:
                service.close()
            if found is not None:
                raise JobFailedError(
                    f"The record of the batch {found.id} is missing in {self._records.url}: it is paid for, and what "
                    "its lines are is not known.",
                    f"Bring the record back from a copy, or `{ProviderBatch.command} forget {self._output.path} {key}` "
                    "and run the same command again: its requests are then paid for once more.",
                )

    def _found(self, record: ProviderBatch) -> ProviderBatch:
        """Return a batch with its ID."""
        if record.id is not None:
            return record
        service = self._open(record.spec)
        try:
            return settle(record, self._records, service, GRACE)
        except AmbiguousSubmission as error:
            raise self._explained(error) from None
        finally:
            service.close()

    def _withdraw(self, record: ProviderBatch, service: BatchService | None = None) -> None:
        """Take an order that was never sent out of the journals, and what was uploaded for it from the provider."""
        withdraw_intents(self._output, record.key)
        own = self._open(record.spec) if service is None else None
        with suppress(SkllmRayError):  # it is away: what lies there costs nothing
            (service or own).remove_uploads(record.key)  # type: ignore[union-attr]  # one of them is there
        if own is not None:
            own.close()
        if record.version:
            self._records.write(replace(record, state="forgotten"))

    def _explained(self, error: AmbiguousSubmission) -> AmbiguousSubmission:
        command, folder = ProviderBatch.command, self._output.path
        return AmbiguousSubmission(
            error.message,
            f"Look at the provider's list of batches for {error.key}. If it is there: `{command} adopt {folder} "
            f"{error.key} ID`. If it is not: `{command} forget {folder} {error.key}`. Then run the same command again.",
            error.key,
        )
