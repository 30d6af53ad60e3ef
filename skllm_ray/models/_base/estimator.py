"""What all estimators share: the path from texts to the runner and back.

An estimator names its task (:meth:`LLMEstimator._task`) and what becomes of its rows
(:meth:`LLMEstimator._reading`); everything else is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, get_args

import pandas as pd
import pyarrow as pa
from sklearn.utils.validation import check_is_fitted

from skllm_ray.config import Secret, SKLLMConfig
from skllm_ray.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
)
from skllm_ray.execution.inherited_secrets import recalled
from skllm_ray.execution.plan import Plan, Step
from skllm_ray.execution.shared_secrets import share
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.credentials import left_behind, secrets_of, warn_of_another_key
from skllm_ray.llm.registry import resolve, warn_if_ended
from skllm_ray.models._base import results
from skllm_ray.models._base.by_batch import check_delivery, details_by_batch, predictions_by_batch
from skllm_ray.models._base.constraints import (
    A_MAPPING,
    A_STR,
    Constraints,
    OneOf,
    Text,
    at_least_one,
    check_values,
    true_or_false,
)
from skllm_ray.models._base.docs_link import DocsLink
from skllm_ray.models._base.hiding import hidden, refuse_credentials
from skllm_ray.models._base.inputs import Texts, as_texts, refuse_missing
from skllm_ray.models._base.reading import DatasetReading, OnError, Reading
from skllm_ray.models._base.sklearn_bases import BaseEstimator
from skllm_ray.prompts import check_template
from skllm_ray.tasks.base import ChatRequest, FollowUpTask, Row, Task
from skllm_ray.tasks.embedding import EmbeddingTask, of_one_length

__all__ = ["LLMEstimator", "OnError", "wrap_secret"]


class LLMEstimator(DocsLink, BaseEstimator):
    """Base of all estimators. A subclass names its task and what a row's value becomes."""

    _family: ClassVar[str] = "gpt"
    _placeholders: ClassVar[tuple[str, ...]] = ("x",)

    _parameter_constraints: ClassVar[Constraints] = {
        "model": [Text()],
        "on_error": [OneOf(*get_args(OnError))],
        "key": [A_STR, None],
        "org": [A_STR, None],
        "prompt_template": [A_STR, None],
        "request_options": [A_MAPPING, None],
    }

    model: str
    on_error: OnError
    request_options: Mapping[str, Any] | None
    key: str | None = None
    org: str | None = None

    # --- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def _task(self) -> Task[Any]:
        """Return the task of the fitted estimator."""

    def _reading(self) -> Reading:
        """Return what becomes of rows; it travels to the workers in the estimator's place."""
        return Reading(self.model, {"prediction": pa.string()})

    def _array(self, values: Sequence[Any]) -> Any:
        """Return a call's results as what ``predict`` or ``transform`` returns."""
        return results.as_objects(values)

    def _warn_invalid(self, rows: Sequence[Row[Any]]) -> None:
        results.warn_invalid(rows, "were not of the form asked for", "None")

    _compares_labels: bool = False
    """Whether a prediction takes the probabilities of all labels."""

    def _plan(self, spec: BackendSpec) -> Plan:
        """Return what the fitted estimator asks, step by step; `spec` is the model that the user named."""
        return (Step(self._task(), spec),)

    def _ready(self, plan: Plan) -> Plan:
        """Return the plan with all that has to be asked of its models before the first row."""
        return plan

    # --- for users ------------------------------------------------------------------------------------------------

    def predict_details(
        self, X: Any, *, include_io: bool = False, on_error: OnError | None = None, delivery: str = "direct"
    ) -> pd.DataFrame:
        """Return one line per text: prediction, probability, errors, tokens, cost.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        include_io : bool, default=False
            Whether to add the columns ``prompt``, as it was sent (None where nothing was), and ``raw_reply``.
        on_error : {"default", "coerce"} or None, default=None
            What ``prediction`` holds for failed rows: the default, or None. The table is always whole: with "raise",
            failed rows are shown as with "coerce".
        delivery : {"direct", "batch"}, default="direct"
            "batch" sends provider batches, which cost half and take up to a day: the call returns when they are home.
            Ctrl-C leaves them running, and the same call takes them up. It goes without `include_io`.

        Returns
        -------
        pandas.DataFrame of shape (n_samples, 11 or 13)
            With the index of `X` and always the same columns. ``probability`` is NaN where the model tells none.
            Extractors have ``field_probabilities`` too, and entity taggers ``entity_probabilities``.
        """
        true_or_false("include_io", include_io)
        mode = self._mode(on_error)
        if check_delivery(delivery):
            if include_io:
                raise ConfigurationError("include_io=True does not go with delivery='batch'.", "Leave either out.")
            check_is_fitted(self)
            return details_by_batch(self, X, mode)
        texts, rows, mode = self._run(X, "coerce" if mode == "raise" else mode, keeps_requests=include_io)
        results.warn_ended(self.model, rows)
        results.warn_low_mass(self.model, rows)
        requests = [row.request for row in rows] if include_io else None
        reading = self._reading()
        table = results.details(reading.predictions(texts, rows, mode), rows, texts.index, requests)
        for place, (name, values) in enumerate(zip(reading.confidences, reading.confidences_of(rows), strict=True)):
            table.insert(len(results.DETAIL_COLUMNS) + place, name, pd.Series(values, table.index, dtype=object))
        return table

    def render_prompt(self, X: Any) -> list[str | None]:
        """Return the exact prompts, without sending or starting anything; None where the text is missing."""
        check_is_fitted(self)
        return [results._prompt(request) for request in self._requests(as_texts(X))]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a credential is wrapped so that it shows itself nowhere, however it is set."""
        super().__setattr__(name, hidden(name, value))

    # --- inside ---------------------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.non_deterministic = True
        return tags

    def _run(
        self,
        X: Any,
        on_error: OnError | None,
        num_workers: int | None = None,
        *,
        best_only: bool = False,
        log_probs: bool = False,
        confidence: bool = True,
        keeps_requests: bool = False,
    ) -> tuple[Texts, list[Row[Any]], OnError]:
        check_is_fitted(self)
        self._validate_params()
        mode = self._mode(on_error)
        texts = as_texts(X)
        if mode == "raise":
            refuse_missing(texts)
        if num_workers is not None:
            at_least_one("num_workers", num_workers)
            num_workers = int(num_workers)
        plan = self._checked_plan(best_only=best_only, log_probs=log_probs, confidence=confidence)
        secrets = self._secrets()
        from skllm_ray.execution.runner import run

        def process(present: Sequence[str], places: Sequence[int]) -> Sequence[Row[Any]]:
            options: Any = {"positions": places, "num_workers": num_workers, "keeps_requests": keeps_requests}
            return run(present, self._ready(plan), secrets, **options)

        return texts, self._reading().rows(texts, mode, process), mode

    def _map_dataset(
        self, ds: Any, text_column: str, output_prefix: str, details: bool, on_error: OnError | None
    ) -> Any:
        check_is_fitted(self)
        self._validate_params()
        true_or_false("details", details)
        mode = self._mode(on_error)
        from skllm_ray.execution.dataset_columns import column_names, map_dataset

        to_columns = DatasetReading(self._reading(), mode, details, output_prefix)
        known = column_names(ds)
        if known is not None and text_column not in known:
            raise InputError(
                f"ds has no column {text_column!r}; text_column names it.", f"Columns: {', '.join(known)}."
            )
        both = sorted(set(known or ()) & set(to_columns.types))
        if both:
            raise InputError(f"ds has a column {both[0]!r} already.", "Pass output_prefix='…' to rename the new ones.")
        best_only = not details and not self._compares_labels
        plan = self._ready(self._checked_plan(best_only=best_only, confidence=details))
        return map_dataset(ds, text_column, to_columns, plan, self._secrets())

    def _results(
        self,
        X: Any,
        on_error: OnError | None,
        num_workers: int | None = None,
        *,
        delivery: str = "direct",
        **wanted: bool,
    ) -> Any:
        if check_delivery(delivery):
            check_is_fitted(self)
            return self._array(predictions_by_batch(self, X, self._mode(on_error)))
        texts, rows, mode = self._run(X, on_error, num_workers, confidence=False, **wanted)
        results.warn_failed(self.model, rows, mode)
        self._warn_invalid(rows)
        results.warn_low_mass(self.model, rows)
        return self._array(self._reading().predictions(texts, rows, mode))

    def _requests(self, texts: Texts) -> list[ChatRequest | None]:
        """Return what the last step asks; the steps before it are asked where it depends on their answers."""
        task, present = self._task(), [text for text in texts.values if text is not None]
        if isinstance(task, FollowUpTask) and present:
            rows = self._answered(present, self._plan(self._spec())[:-1])
            rendered = iter(task.render_after(present, rows))
        else:
            rendered = iter(task.render(present))
        return [None if text is None else next(rendered) for text in texts.values]

    def _answered(self, texts: Sequence[str], plan: Plan) -> list[Row[Any]]:
        """Return the rows of some texts, each of which must have an answer; vectors must be of one length."""
        from skllm_ray.execution.runner import run

        rows = run(texts, plan, self._secrets())
        if isinstance(plan[-1].task, EmbeddingTask):
            rows = of_one_length(rows)
        failed = next((row.error for row in rows if row.error is not None), None)
        if failed is not None:
            told = f"{plan[-1].spec.model} did not answer for every text ({failed.kind}): {failed.message}"
            raise JobFailedError(told, failed.hint)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Return what travels: with the settings of this process, without any credential."""
        return {**super().__getstate__(), "_settings": self._settings_to_carry()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take what travelled; formats that know strings alone, such as skops', have made strings of the secrets."""
        super().__setstate__({name: hidden(name, value) for name, value in state.items()})
        settings = vars(self).get("_settings")
        if settings is not None and settings.openai_key is not None:
            self.__dict__["_settings"] = replace(settings, openai_key=Secret(settings.openai_key))

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted copy, which knows the same settings of another process, and may go to one."""
        share(self._secrets())
        copy: Self = super().__sklearn_clone__()
        if "_settings" in vars(self):
            copy.__dict__["_settings"] = vars(self)["_settings"]
        return copy

    def _settings_to_carry(self) -> Any:
        """Return the settings of this process, and for what is not set here, those that the estimator came with."""
        with SKLLMConfig._borrowed(vars(self).get("_settings")):
            return SKLLMConfig._settings

    def _checked_plan(self, *, best_only: bool = False, log_probs: bool = False, confidence: bool = True) -> Plan:
        """Return the plan of a call that is about to be made; what cannot work is raised.

        `best_only` spares a local model the other labels' probabilities, and `log_probs` asks an API for them, and
        `confidence` takes them where there are any.
        """
        spec = self._checked_spec()
        if confidence:
            spec = spec.asked_for("confidence")
        if log_probs:
            spec = spec.asked_for("log_probs")
        if best_only:
            spec = spec.asked_for("label")
        plan = self._plan(spec)
        for step in plan[:-1]:
            step.spec.check()
        return plan

    def _spec(self) -> BackendSpec:
        """Return the backend's spec, under the settings of this process, or of the one that the estimator came from."""
        with SKLLMConfig._borrowed(self._settings_of_origin()):
            return self._resolve()

    def _checked_spec(self) -> BackendSpec:
        """Return the spec for a call that is about to be made; what cannot work is raised."""
        spec = self._spec()
        spec.check()
        with SKLLMConfig._borrowed(self._settings_of_origin()):
            warn_of_another_key(spec, left_behind(recalled(self.key)))
        return spec

    def _settings_of_origin(self) -> Any:
        """Return the settings of the process that the estimator came from, with its key where that is known."""
        settings = vars(self).get("_settings")
        return None if settings is None else replace(settings, openai_key=recalled(settings.openai_key))

    def _resolve(self) -> BackendSpec:
        return resolve(self.model, recalled(self.key), self.org, self.request_options, self._family)

    def _secrets(self) -> dict[str, Secret]:
        with SKLLMConfig._borrowed(self._settings_of_origin()):
            return secrets_of(recalled(self.key) if isinstance(self.key, str) else None)  # fit refuses all else

    def _mode(self, on_error: OnError | None) -> OnError:
        mode = self.on_error if on_error is None else on_error
        if mode not in get_args(OnError):
            raise ConfigurationError(f"on_error must be 'raise', 'default' or 'coerce'; got {mode!r}.")
        return mode

    def _check_parameters(self) -> None:
        """Raise what cannot work, and warn of what soon cannot; called by ``fit``."""
        self._validate_params()
        warn_if_ended(self._spec())
        share(self._secrets())

    def _validate_params(self) -> None:
        """Raise for a parameter that cannot work; called before every call too, as one may be set at any time."""
        check_values(self)
        refuse_credentials(self.request_options)
        template = vars(self).get("prompt_template")
        if template is not None:
            try:
                check_template(template, self._placeholders)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None


def wrap_secret(key: str | None) -> str | None:
    """Return `key` so that it shows itself nowhere; the same object if it is wrapped already, or is no text."""
    return Secret(key) if isinstance(key, str) else key
