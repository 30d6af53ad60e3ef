"""The batches of an output for people: list them, look at them, stop them, take one in, give one up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from skllm_ray.batch.delivery.batch_records import cancel_run, open_records, withdraw_intents
from skllm_ray.batch.delivery.order import Store
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import Folder, StorageOptions, absolute, open_folder
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import InputError
from skllm_ray.llm.provider_batches import BatchService, ProviderBatch, open_batch_service
from skllm_ray.llm.submissions import BEFORE_POST, refresh

StorageGiven = Mapping[str, Any] | None


def list_batches(output: str, *, storage_options: StorageGiven = None) -> list[ProviderBatch]:
    """Return the batches that a job's output has had, oldest first, as its records tell.

    Parameters
    ----------
    output : str
        The job's output folder.
    storage_options : mapping or None, default=None
        What opens its filesystem.
    """
    return _records(_folder(output, storage_options)).jobs()


def look_at_batches(
    output: str, name: str | None = None, *, storage_options: StorageGiven = None
) -> list[ProviderBatch]:
    """Return the batches of an output after asking the provider how those are that have not ended.

    Parameters
    ----------
    output : str
        The job's output folder.
    name : str or None, default=None
        One of them, by its ID or its key; None looks at all.
    storage_options : mapping or None, default=None
        What opens its filesystem.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    records = _records(_folder(output, storage_options))
    return [_asked(one, lambda service, one: refresh(one, records, service)) for one in _named(records, name)]


def cancel_batches(
    output: str, name: str | None = None, *, storage_options: StorageGiven = None
) -> list[ProviderBatch]:
    """Ask the provider to stop an output's batches.

    What they have answered is paid for, and the next run takes it home. Where all are stopped, whoever delivers the
    output now, a run or a watcher, orders no more and ends.

    Parameters
    ----------
    output : str
        The job's output folder.
    name : str or None, default=None
        One of them, by its ID or its key; None stops all that are live.
    storage_options : mapping or None, default=None
        What opens its filesystem.
    """
    folder = _folder(output, storage_options)
    records = _records(folder)
    if name is None:
        cancel_run(folder)

    def cancel(service: BatchService, record: ProviderBatch) -> ProviderBatch:
        if record.id is not None and not record.has_ended:
            service.cancel(record.id)
        return refresh(record, records, service)

    return [_asked(one, cancel) for one in _named(records, name) if one.is_live]


def adopt_batch(output: str, key: str, batch_id: str, *, storage_options: StorageGiven = None) -> ProviderBatch:
    """Tell an output that its batch `key`, whose submission's outcome was unknown, is `batch_id` at the provider.

    Parameters
    ----------
    output : str
        The job's output folder.
    key : str
        The batch's key, as `AmbiguousSubmission` named it.
    batch_id : str
        Its ID at the provider.
    storage_options : mapping or None, default=None
        What opens its filesystem.

    Raises
    ------
    InputError
        If the provider does not know `batch_id`, it carries another key, or `key` has an ID already.
    """
    records = _records(_folder(output, storage_options))
    record = records.find(key)
    if record.id is not None or record.state in BEFORE_POST:
        raise InputError(f"The batch {record.key} is {record.id or record.state} already.", "Nothing was changed.")

    def adopt(service: BatchService, record: ProviderBatch) -> ProviderBatch:
        found = service.get(batch_id)
        if found is None:
            raise InputError(f"{record.service} knows no batch {batch_id!r}.", "Check the ID and the key's project.")
        if found.key not in {None, record.key}:
            raise InputError(f"{batch_id} carries the key {found.key}, not {record.key}.", "Check the ID.")
        return records.write(record.seen(found)) or records.find(key)

    return _asked(record, adopt)


def forget_batch(output: str, key: str, *, storage_options: StorageGiven = None) -> None:
    """Give a batch up: its requests may then be sent, and paid for, again. The provider's batch is left alone.

    Parameters
    ----------
    output : str
        The job's output folder.
    key : str
        The batch's key or ID.
    storage_options : mapping or None, default=None
        What opens its filesystem.

    Raises
    ------
    OutputInUseError
        If a run writes to the output.
    """
    folder = _folder(output, storage_options)
    records = _records(folder)
    known = records.read(key) if key.isalnum() else None
    record = known if known is not None and known.state != "forgotten" else None
    if record is None and known is None:
        record = next((one for one in records.jobs() if one.id == key), None)
    with OutputLock(folder.below(SYSTEM)):
        withdraw_intents(folder, key if record is None else record.key)
        if record is not None:
            records.write(replace(record, state="forgotten"))


# --- inside -------------------------------------------------------------------------------------------------------


def _folder(output: str, storage_options: StorageGiven) -> Folder:
    options = StorageOptions.of(storage_options)
    return open_folder(absolute(output), options, options.secrets())


def _records(folder: Folder) -> Store:
    return open_records(folder)


def _named(records: Store, name: str | None) -> list[ProviderBatch]:
    return records.jobs() if name is None else [records.find(name)]


def _asked(record: ProviderBatch, do: Callable[[BatchService, ProviderBatch], ProviderBatch]) -> ProviderBatch:
    if record.has_ended or record.state in BEFORE_POST:
        return record
    key = SKLLMConfig.get_openai_key()
    service = open_batch_service(record.spec, {key.fingerprint: key} if key else {})
    try:
        return do(service, record)
    finally:
        service.close()
