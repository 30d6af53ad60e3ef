"""Vectors of a scikit-learn transformer, as a backend gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skllm_ray.errors import NotSupportedError
from skllm_ray.llm.base import Backend, Capabilities, SecretResolver
from skllm_ray.models._base.fitted_spec import LOCAL, FittedSpec
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError


@dataclass(frozen=True)
class TransformerSpec(FittedSpec):
    """A fitted scikit-learn transformer of texts as a backend of vectors."""

    transformer: Any

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take what travelled. The first release's had fields that nobody reads any more."""
        self.__dict__.update({name: state[name] for name in ("transformer", "key", "limit")})

    @property
    def fitted(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def capabilities(self) -> Capabilities:
        """It makes vectors, at once and for nothing."""
        return replace(LOCAL, embeds=True)

    def open(self, resolve_secret: SecretResolver) -> TransformerBackend:  # noqa: ARG002 - it has none
        """Return the backend."""
        return TransformerBackend(self)


class TransformerBackend(Backend):
    """A fitted scikit-learn transformer that embeds."""

    def __init__(self, spec: TransformerSpec) -> None:
        self._spec = spec

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Refuse: it has no answers."""
        raise NotSupportedError(f"{self._spec.model} makes vectors, not answers; {len(requests)} were asked for.")

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, or its failure."""
        try:
            found = self._spec.transformer.transform(list(texts))
            # A transformer gives an array or any library's sparse matrix.
            dense = np.asarray(found.toarray() if hasattr(found, "toarray") else found, np.float32)
        except Exception as error:  # noqa: BLE001  whatever a user's transformer raises fails its rows, typed
            failure = RowError("bad_request", f"{self._spec.model}.transform raised {type(error).__name__}: {error}")
            return [Embedding(error=failure, model=self._spec.model) for _ in texts]
        return [Embedding(vector, model=self._spec.model) for vector in dense]

    def close(self) -> None:
        """Nothing is held open."""
