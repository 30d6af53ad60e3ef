"""Loaded models of this process, or, through Ray, of the cluster: scikit-llm's ``ModelCache``."""

from __future__ import annotations

import threading
from typing import ClassVar, Protocol, runtime_checkable

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import supported_models

__all__ = ["ModelCache", "ModelStore", "supported_models"]


@runtime_checkable
class ModelStore(Protocol):
    """Anything that holds a loaded model: an open backend, or a pool of model actors."""

    def close(self) -> None:
        """Free the model, wherever it is."""
        ...


class ModelCache:
    """Keeps loaded models between calls.

    An estimator's first call loads its model; later calls, of any estimator, find it here. Changing
    ``gguf_max_gpu_layers`` does not reload a loaded model: :meth:`clear` unloads it first.

    Examples
    --------
    >>> ModelCache.clear()
    >>> ModelCache.get("gguf::demo") is None
    True
    """

    _stores: ClassVar[dict[str, ModelStore]] = {}
    _lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def get(cls, key: str) -> ModelStore | None:
        """Return what is stored under `key`, or None."""
        with cls._lock:
            return cls._stores.get(key)

    @classmethod
    def store(cls, key: str, model: ModelStore) -> None:
        """Keep `model` under `key`; what was there before is closed."""
        with cls._lock:
            before = cls._stores.get(key)
            cls._stores[key] = model
        if before is not None and before is not model:
            before.close()

    @classmethod
    def remove(cls, key: str) -> None:
        """Close and forget what is stored under `key`, if anything is."""
        with cls._lock:
            model = cls._stores.pop(key, None)
        if model is not None:
            model.close()

    @classmethod
    def clear(cls) -> None:
        """Unload all models, on this machine and, where Ray actors hold them, on the cluster."""
        with cls._lock:
            models = list(cls._stores.values())
            cls._stores.clear()
        for model in models:
            model.close()
