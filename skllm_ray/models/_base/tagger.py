"""What the entity taggers of all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.models._base import results
from skllm_ray.models._base.columns import as_wide_as
from skllm_ray.models._base.constraints import A_FLAG, Constraints, Whole
from skllm_ray.models._base.entity_page import EntityPage, show
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.inputs import Texts
from skllm_ray.models._base.reading import EntityReading, Reading, marked
from skllm_ray.models._base.transformer import TextTransformer
from skllm_ray.tasks.ner import NERTask, Span

_SPAN = pa.struct(
    {"start": pa.int64(), "end": pa.int64(), "tag": pa.string(), "value": pa.string(), "reasoning": pa.string()}
)


class ExplainableNER(TextTransformer):
    """Base of the taggers."""

    _parameter_constraints: ClassVar[Constraints] = {
        "display_predictions": [A_FLAG],
        "sparse_output": [A_FLAG],
        "num_workers": [Whole(1)],
    }

    entities: Mapping[str, str]
    display_predictions: bool
    sparse_output: bool
    num_workers: int

    def transform(self, X: Any, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return every text with its entities marked, as scikit-llm writes them.

        An entity is ``<entity><reasoning>…</reasoning><tag>…</tag><value>…</value></entity>``, all else
        ``<not_entity>…</not_entity>``. ``&``, ``<`` and ``>`` of the text are escaped as in XML, so that
        :func:`skllm_ray.tasks.untagged` gives the text back, whatever it holds. Of entities that overlap, the longest
        is marked; `predict_spans` has them all.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of object of shape (n_samples,), or (n_samples, 1) where `X` has two dimensions
            Of str; None for rows that failed, with "coerce", and where the answer was of no use.

        Raises
        ------
        InputError
            If a text is missing and ``on_error="raise"``.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        texts, spans = self._spans(X, on_error)
        if self.display_predictions:
            show(EntityPage(texts.values, spans, list(self.entities)))
        return as_wide_as(X, results.as_objects(marked(texts, spans)))

    def predict_spans(self, X: Any, *, on_error: OnError | None = None) -> list[list[Span] | None]:
        """Return the entities of every text and where they stand: ``text[span.start:span.end]`` is ``span.value``.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        list of list of Span, or None for rows without a result
            In the order of the text; positions count characters.
        """
        return self._spans(X, on_error)[1]

    def display(self, X: Any, *, on_error: OnError | None = None) -> EntityPage:
        """Return the texts with their entities as a page: Jupyter shows it, ``save`` writes it as HTML.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.
        """
        texts, spans = self._spans(X, on_error)
        return EntityPage(texts.values, spans, list(self.entities))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the name of the one column that ``transform`` returns.

        Parameters
        ----------
        input_features : None
            Ignored.
        """
        return np.asarray(["tagged"], dtype=object)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _task(self) -> NERTask:
        self._validate_params()
        return NERTask(dict(self.entities), self.sparse_output)

    @property
    def _n_workers(self) -> int | None:  # type: ignore[override]
        self._validate_params()
        return self.num_workers if self.num_workers > 1 else None

    def _spans(self, X: Any, on_error: OnError | None) -> tuple[Texts, list[list[Span] | None]]:
        texts, rows, mode = self._run(X, on_error, self._n_workers)
        results.warn_failed(self.model, rows, mode)
        self._warn_invalid(rows)
        return texts, [None if row.value is None else list(row.value) for row in rows]

    def _reading(self) -> Reading:
        return EntityReading(self.model, {"tagged": pa.string(), "entities": pa.list_(_SPAN)})

    def _validate_params(self) -> None:
        super()._validate_params()
        if not isinstance(self.entities, Mapping) or not self.entities:
            raise ConfigurationError(
                f"entities must be a mapping of names to meanings with at least one entry; got {self.entities!r}.",
                "Such as {'PERSON': 'the name of a person'}.",
            )
        wrong = [name for name, told in self.entities.items() if not (_is_text(name) and isinstance(told, str))]
        if wrong:
            raise InputError(f"entities maps {wrong[0]!r} to {self.entities[wrong[0]]!r}.", "Both must be strings.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
