"""Models and clients that are open in this process, or, through Ray, in the cluster."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class ModelStore(Protocol):
    """Anything that holds a loaded model: an open backend, or a pool of model actors."""

    def close(self) -> object:
        """Free the model, wherever it is; may return a list of :class:`Freed`."""
        ...


@dataclass(frozen=True, slots=True)
class Freed:
    """One process that gave up a model."""

    model: str
    node: str
    """The node's address."""
    pid: int
    memory_mb: float
    """Resident memory that it held, in MB, pages of the model's file that others map included."""


class ModelCache:
    """Keeps loaded models between calls.

    An estimator's first call loads its model; later calls, of any estimator, find it here. Changing
    ``gguf_max_gpu_layers`` does not reload a loaded model: :meth:`clear` unloads it first.

    Examples
    --------
    >>> ModelCache.clear()
    []
    >>> ModelCache.get("gguf::demo") is None
    True
    """

    _stores: ClassVar[dict[str, ModelStore]] = {}
    _shared: ClassVar[set[str]] = set()
    """Keys of models that stay when this process ends."""
    _elsewhere: ClassVar[list[Callable[[], list[Freed]]]] = []
    _lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def get(cls, key: str) -> ModelStore | None:
        """Return what is stored under `key`: a model's actors, else the model that is open here; or None."""
        with cls._lock:
            return cls._stores.get(key) or cls._stores.get(key_here(key))

    @classmethod
    def store(cls, key: str, model: ModelStore, *, shared: bool = False) -> None:
        """Keep `model` under `key`; what was there before is closed. A `shared` one stays when this process ends."""
        with cls._lock:
            before = cls._stores.get(key)
            cls._stores[key] = model
            (cls._shared.add if shared else cls._shared.discard)(key)
        if before is not None and before is not model:
            before.close()

    @classmethod
    def entries(cls) -> dict[str, ModelStore]:
        """Return all that is stored, by key."""
        with cls._lock:
            return dict(cls._stores)

    @classmethod
    def forget(cls, key: str) -> None:
        """Forget what is stored under `key`, if anything is, and leave it open."""
        with cls._lock:
            cls._stores.pop(key, None)

    @classmethod
    def remove(cls, key: str) -> None:
        """Close and forget what is stored under `key`, in actors and in this process, if anything is."""
        with cls._lock:
            models = [cls._stores.pop(one, None) for one in (key, key_here(key))]
        for model in models:
            if model is not None:
                model.close()

    @classmethod
    def also_clears(cls, unload: Callable[[], list[Freed]]) -> None:
        """Have :meth:`clear` call `unload` as well, for models that nothing in this process stands for."""
        with cls._lock:
            if unload not in cls._elsewhere:
                cls._elsewhere.append(unload)

    @classmethod
    def clear(cls) -> list[Freed]:
        """Unload all models: this process's, those of its Ray job, and those of the cluster that outlive jobs.

        A call that is at work with one of them fails with ``ClusterError``.

        Returns
        -------
        list of Freed
            What was freed, one entry per process; logged as well, by the logger ``skllm_ray``, at level INFO.
        """
        return cls._clear(shared=True)

    @classmethod
    def _clear(cls, *, shared: bool) -> list[Freed]:
        """Unload all models; those that stay for other jobs (``keep_alive_s``) only if `shared`."""
        with cls._lock:
            stores = cls._stores
            closing = [cls._stores.pop(key) for key in list(stores) if shared or key not in cls._shared]
            cls._stores.clear()
            cls._shared.clear()
            elsewhere = list(cls._elsewhere) if shared else []
        freed: list[Freed] = []
        for model in closing:
            found = model.close()
            freed += [entry for entry in found if isinstance(entry, Freed)] if isinstance(found, list) else []
        for unload in elsewhere:
            freed += unload()
        for entry in freed:
            _log.info("unloaded %s: process %d on %s, %.0f MB", entry.model, entry.pid, entry.node, entry.memory_mb)
        return freed


def key_here(key: str) -> str:
    """Return the key of the model `key` where it is open in this process, rather than in actors."""
    return f"{key} in process"


_log = logging.getLogger("skllm_ray")
