"""What the orders of an output have written into its journals, and the store of their records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skllm_ray.batch.output.journal import intent_line, intents, write_segment
from skllm_ray.batch.output.part import JOURNAL, SYSTEM
from skllm_ray.batch.storage import Folder
from skllm_ray.llm.provider_batches import ProviderBatch
from skllm_ray.llm.submissions import SubmissionStore
from skllm_ray.llm.submissions.stores import FileStore

_RECORDS: Final = f"{SYSTEM}/batches"
_CANCELLED: Final = f"{SYSTEM}/cancelled"
_MARK: Final = "b"
_INTENTS: Final = 0
"""The number of the segment in which an order's intents stand."""


class FolderStore(SubmissionStore[ProviderBatch]):
    """Records in an output's folder, wherever that is. Who writes them holds the output's lock.

    Parameters
    ----------
    folder : Folder
        Of the output's filesystem.
    """

    def __init__(self, folder: Folder) -> None:
        self.record = ProviderBatch
        self.url = folder.path
        self._folder = folder

    def _create(self, path: str, content: bytes) -> bool:
        folder, _, name = path.rpartition("/")
        return self._folder.below(folder).create(name, content)

    def _read(self, path: str) -> bytes:
        return self._folder.read(path)

    def _versions(self, key: str) -> list[str]:
        return sorted(name for name in self._folder.below(key).names() if name.endswith(".json"))

    def keys(self) -> list[str]:
        """Return the keys of all batches."""
        return sorted({name.partition("/")[0] for name in self._folder.names(recursive=True)})


def open_records(output: Folder) -> SubmissionStore[ProviderBatch]:
    """Return the records of an output's batches."""
    folder = output.below(_RECORDS)
    return FileStore(folder.path, ProviderBatch) if folder.is_local else FolderStore(folder)


def has_records(output: Folder) -> bool:
    """Return whether an output ever had batches."""
    return bool(output.below(_RECORDS).names(recursive=True)) or bool(ordered_keys(output))


def cancel_run(output: Folder) -> None:
    """Tell whoever delivers an output by batches, a driver or a watcher, to order no more and to end."""
    output.write(_CANCELLED, b"")


def is_cancelled(output: Folder) -> bool:
    """Return whether it was told so since the last run began."""
    return _CANCELLED.rpartition("/")[2] in output.below(SYSTEM).names()


def go_on(output: Folder) -> None:
    """Let a run begin, whatever the last one was told."""
    output.delete(_CANCELLED)


def attempt(key: str) -> str:
    """Return what the journals call the attempt of an order."""
    return f"{_MARK}{key}"


def write_intents(output: Folder, key: str, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Write down, for each unit, which requests an order is about to ask and what each may cost."""
    for unit, most in costs.items():
        write_segment(output.below(f"{JOURNAL}/{unit}"), attempt(key), _INTENTS, [intent_line(most)])


def read_intents(output: Folder, key: str) -> dict[tuple[str, str], float]:
    """Return what an order asks and what each request may cost, by unit and the request's hash."""
    found: dict[tuple[str, str], float] = {}
    start = f"{attempt(key)}-"
    for name in output.below(JOURNAL).names(recursive=True):
        unit, _, file = name.partition("/")
        if file.startswith(start):
            most = intents(output.below(f"{JOURNAL}/{unit}"), file)
            found.update({(unit, hashed): cost for hashed, cost in most.items()})
    return found


def withdraw_intents(output: Folder, key: str) -> None:
    """Take an order that nothing came of out of the journals."""
    start = f"{attempt(key)}-"
    for name in list(output.below(JOURNAL).names(recursive=True)):
        if name.partition("/")[2].startswith(start):
            output.below(JOURNAL).delete(name)


def ordered_keys(output: Folder) -> set[str]:
    """Return the keys of all orders that the journals tell of."""
    names = (name.partition("/")[2] for name in output.below(JOURNAL).names(recursive=True))
    attempts = {name.partition("-")[0] for name in names}
    return {name[len(_MARK) :] for name in attempts if name.startswith(_MARK) and len(name) == len(_MARK) + 40}
