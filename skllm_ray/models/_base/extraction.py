"""What the extractors of all families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ConfigurationError
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.reading import FieldReading, Reading
from skllm_ray.models._base.transformer import TextTransformer
from skllm_ray.prompts.templates import EXTRACTION_PROMPT_TEMPLATE
from skllm_ray.tasks.extraction import ExtractionTask, strict


class Extractor(TextTransformer):
    """Base of the extractors."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "schema")

    schema: Any
    prompt_template: str | None

    def transform(self, X: Any, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return the fields of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of object of shape (n_samples, n_fields)
            A column for each field, as ``get_feature_names_out`` names them; ``set_output(transform="pandas")`` makes
            it a DataFrame. None for rows that failed, with "coerce", and where the answer did not follow the schema.

        Raises
        ------
        InputError
            If a text is missing and ``on_error="raise"``.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        return super().transform(X, on_error=on_error)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _task(self) -> ExtractionTask:
        self._validate_params()
        model = self.schema

        def validate(answer: Any) -> dict[str, Any]:
            return dict(model.model_validate(answer).model_dump(mode="json"))

        template = self.prompt_template or EXTRACTION_PROMPT_TEMPLATE
        return ExtractionTask(strict(model.model_json_schema()), validate, template)

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        found = np.empty((len(values), len(self._fields())), dtype=object)
        for position, column in enumerate(self._reading().columns(values, ())):
            for row, value in enumerate(column):
                found[row, position] = value
        return found

    def _reading(self) -> Reading:
        return FieldReading(self.model, dict.fromkeys(self._fields()))

    def _fields(self) -> list[str]:
        self._validate_params()
        return list(self.schema.model_fields)

    def _validate_params(self) -> None:
        from pydantic import BaseModel

        if not (isinstance(self.schema, type) and issubclass(self.schema, BaseModel) and self.schema.model_fields):
            raise ConfigurationError(
                f"schema must be a subclass of pydantic.BaseModel with fields; got {self.schema!r}.",
                "class Order(BaseModel): item: str",
            )
        super()._validate_params()
