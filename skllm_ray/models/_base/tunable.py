"""What the tunable estimators share: from texts and answers to a tuning job, and from a job to a fitted estimator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from skllm_ray.errors import InputError, JobFailedError, NotSupportedError, warn
from skllm_ray.execution.inherited_secrets import recalled
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import provider_of, resolve
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.llm.tuning import TuningJob, TuningSpec
from skllm_ray.llm.tuning.examples import example_line
from skllm_ray.llm.tuning_services import resolve_tuning, with_data
from skllm_ray.models._base.constraints import A_FLAG, Constraints, Number, OneOf, Text, Whole
from skllm_ray.models._base.estimator import LLMEstimator
from skllm_ray.models._base.inputs import Texts, as_texts

_ADAPTER_SIZES = (1, 2, 4, 8, 16, 32)
_LONGEST_SUFFIX = 64


class Tunable(LLMEstimator):
    """Base of the estimators that tune a model. A subclass says what the right answer to a text is."""

    _parameter_constraints: ClassVar[Constraints] = {
        "base_model": [Text()],
        "delete_data": [A_FLAG],
        "poll_s": [Number()],
        "grace_s": [Number(zero=True)],
        "learning_rate_multiplier": [Number(), None],
    }

    base_model: str
    delete_data: bool
    poll_s: float
    grace_s: float
    tuned_model_: str
    tuning_job_id_: str

    @abstractmethod
    def _learn(self, X: Any, y: Any) -> None:
        """Check `X`, `y` and the parameters, and set the fitted attributes that need no job."""

    @abstractmethod
    def _answers(self, X: Any, y: Any) -> list[str]:
        """Return the right answer to each text."""

    @abstractmethod
    def _tuning_spec(self) -> TuningSpec:
        """Return what to tune, still without its data set."""

    @property
    def model(self) -> str:  # type: ignore[override]
        """The tuned model, or the base model before there is one."""
        return self._tuned or self.base_model

    @property
    def _tuned(self) -> str | None:
        """The tuned model; None before there is one."""
        return getattr(self, "tuned_model_", None)  # a fitted attribute: absent before `fit`, as scikit-learn wants it

    def fit(self, X: Any, y: Any, *, new: bool = False) -> Self:
        """Tune the base model on `X` and `y`, and wait for it. The same content is never paid for twice.

        Everything is checked before anything is sent. Interrupting the wait leaves the job running: a second call with
        the same content finds it.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        y : array-like of shape (n_samples,)
            The right answer to each.
        new : bool, default=False
            Whether to buy a further job although one of the same content exists.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If a text or an answer is missing, there are too few or too many, or one is too long.
        ConfigurationError
            If a parameter, a setting, the bucket or a permission cannot work.
        NotSupportedError
            If the model cannot be tuned any more.
        AmbiguousSubmission
            If the job was sent and nobody can say whether the service took it.
        JobFailedError
            If the service refused the job, or it ended without a model.
        """
        from skllm_ray.execution.tuning_jobs import wait_with_progress
        from skllm_ray.execution.tuning_watcher import Polling

        job = self.submit_tuning(X, y, new=new)
        job = wait_with_progress(
            job.key, key=recalled(self.key), polling=Polling(self.poll_s, longest_s=max(300.0, self.poll_s))
        )
        self._take(job)
        return self

    def submit_tuning(self, X: Any, y: Any, *, new: bool = False) -> TuningJob:
        """Do what :meth:`fit` does, without the wait: return the job as soon as the service has taken it.

        Parameters
        ----------
        X, y, new
            As in :meth:`fit`.

        Returns
        -------
        TuningJob
            :meth:`from_job` makes a fitted estimator of it once it has ended.
        """
        from skllm_ray.execution.tuning_jobs import submit_job
        from skllm_ray.execution.tuning_watcher import Polling

        self._forget_fit()
        self._validate_params()
        spec, data = self._prepare(X, y)
        polling = Polling(self.poll_s, longest_s=max(300.0, self.poll_s))
        job = submit_job(
            spec,
            data,
            self._describe(),
            key=recalled(self.key),
            new=new,
            patience=GracePeriod(self.grace_s),
            polling=polling,
        )
        self.tuning_job_id_ = job.id or ""
        return job

    @classmethod
    def from_job(cls, job_id: str, *, classes: Sequence[Any] | None = None, **params: Any) -> Self:
        """Return the estimator that a tuning job fitted.

        Parameters
        ----------
        job_id : str
            The service's ID of the job, or its key.
        classes : sequence or None, default=None
            The labels, where the store does not have them, as after ``skllm-ray tune adopt``.
        **params
            Overrides the parameters that the job was submitted with; the key is never kept with a job.

        Raises
        ------
        InputError
            If the store knows no such job, or it belongs to another kind of estimator.
        JobFailedError
            If the job has not ended, or ended without a model.
        """
        from skllm_ray.execution.tuning_jobs import get_job

        job = get_job(job_id, key=params.get("key"))
        kept = job.estimator
        if kept and kept["class"] != cls.__name__:
            raise InputError(
                f"The tuning job {job_id} belongs to {kept['class']}, not to {cls.__name__}.",
                f"Call {kept['class']}.from_job({job_id!r}).",
            )
        estimator = cls(**{"base_model": job.base_model, **_thaw(kept.get("params", {})), **params})
        estimator._restore(kept.get("fitted", {}), classes)
        estimator._take(job)
        return estimator

    def __sklearn_is_fitted__(self) -> bool:
        return self._tuned is not None

    def _prepare(self, X: Any, y: Any) -> tuple[TuningSpec, bytes]:
        """Return the whole job, every check done that needs no service."""
        spec = self._tuning_spec()
        texts = whole_texts(X)
        self._learn(X, y)
        requests = self._task().render([str(text) for text in texts.values])
        pairs = zip(requests, self._answers(X, y), strict=True)
        return with_data(spec, [example_line(spec.service, request, answer) for request, answer in pairs])

    def _take(self, job: TuningJob) -> None:
        """Become fitted by `job`."""
        if not job.has_ended:
            raise JobFailedError(
                f"The tuning job {job.id or job.key} is still {job.state}.", f"Call: skllm-ray tune wait {job.key}"
            )
        if not job.is_usable or job.model is None:
            raise JobFailedError(
                f"The tuning job {job.id} of {job.base_model} ended as {job.state}: {job.error or 'no reason given'}",
                "It will not be submitted again by itself: fit(X, y, new=True) buys another.",
            )
        if job.state == "partially_succeeded":
            warn(
                f"The tuning job {job.id} only succeeded partially ({job.error or 'no reason given'}); its model is "
                "used as it is."
            )
        self.tuning_job_id_ = job.id or ""
        self.tuned_model_ = job.model

    def _forget_fit(self) -> None:
        for name in ("tuned_model_", "tuning_job_id_"):
            self.__dict__.pop(name, None)

    def _describe(self) -> dict[str, Any]:
        """Return what :meth:`from_job` makes the estimator of again: JSON, without credentials."""
        params = {name: value for name, value in self.get_params(deep=False).items() if name != "key"}
        return {"class": type(self).__name__, "params": _freeze(params), "fitted": _freeze(self._fitted())}

    def _fitted(self) -> dict[str, Any]:
        return {}

    def _restore(self, fitted: Mapping[str, Any], classes: Sequence[Any] | None) -> None:
        """Set the fitted attributes that need no job."""


class GPTTunable(Tunable):
    """What is OpenAI's, Azure's and like servers' own."""

    _parameter_constraints: ClassVar[Constraints] = {
        "n_epochs": [Whole(1), None],
        "batch_size": [Whole(1), None],
        "custom_suffix": [Text(_LONGEST_SUFFIX), OneOf(""), None],
        "deployment": [Text(), None],
    }

    n_epochs: int | None
    custom_suffix: str | None
    batch_size: int | None
    learning_rate_multiplier: float | None
    deployment: str | None

    def _tuning_spec(self) -> TuningSpec:
        given = _plain(
            {
                "n_epochs": self.n_epochs,
                "batch_size": self.batch_size,
                "learning_rate_multiplier": self.learning_rate_multiplier,
            }
        )
        return resolve_tuning(
            self.base_model,
            "gpt",
            given,
            key=recalled(self.key),
            org=self.org,
            suffix=self.custom_suffix or "",
            delete_data=self.delete_data,
        )

    def _resolve(self) -> BackendSpec:
        """Return the tuned model's spec, or the base model's before there is one."""
        tuned = self._tuned
        namespace, separator, name = self.base_model.partition("::")
        if tuned is not None:
            is_deployed = provider_of(self.base_model).tuning == "to deploy"
            if is_deployed and not self.deployment:
                raise NotSupportedError(
                    f"Azure serves {tuned!r} only once it is deployed.",
                    "Deploy it in the portal or with `az`, then call set_params(deployment='<its name>').",
                )
            name = self.deployment or tuned if is_deployed else tuned
        return resolve(
            f"{namespace}::{name}" if separator else name or namespace,
            recalled(self.key),
            self.org,
            self.request_options,
        )


class VertexTunable(Tunable):
    """What is Vertex AI's own."""

    _family: ClassVar[str] = "vertex"

    _parameter_constraints: ClassVar[Constraints] = {
        "n_update_steps": [Whole(1)],
        "epoch_count": [Whole(1), None],
        "adapter_size": [OneOf(*_ADAPTER_SIZES), None],
        "location": [Text(), None],
        "bucket": [Text(), None],
    }

    n_update_steps: int
    epoch_count: int | None
    adapter_size: int | None
    learning_rate_multiplier: float | None
    location: str | None
    bucket: str | None

    def _tuning_spec(self) -> TuningSpec:
        given = _plain(
            {
                "epoch_count": self.epoch_count or self.n_update_steps,
                "adapter_size": self.adapter_size,
                "learning_rate_multiplier": self.learning_rate_multiplier,
            }
        )
        return resolve_tuning(
            self.base_model,
            "vertex",
            given,
            suffix="skllm",
            location=self.location,
            bucket=self.bucket,
            delete_data=self.delete_data,
        )

    def _resolve(self) -> BackendSpec:
        """Return the tuned endpoint's spec in the region where it is, or the base model's before there is one."""
        return resolve(self._tuned or self.base_model, None, None, self.request_options, "vertex")


def whole_texts(X: Any, name: str = "X") -> Texts:
    """Return the texts in `X`; refuse it if one is missing."""
    if X is None:
        raise InputError(f"{name} is None.", "Tuning needs the texts and their answers.")
    texts = as_texts(X, name)
    if texts.missing:
        shown = ", ".join(map(str, texts.missing[:5])) + (", …" if len(texts.missing) > 5 else "")
        raise InputError(
            f"{name} has {len(texts.missing)} missing or blank text(s), at position(s) {shown}.",
            "Drop them: a model would learn from them too.",
        )
    return texts


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as JSON takes them: numpy's numbers are none."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _freeze(value: Any) -> Any:
    """Return `value` in a form for JSON that keeps the keys of mappings."""
    if isinstance(value, Mapping):
        return {"mapping": [[_freeze(key), _freeze(inner)] for key, inner in value.items()]}
    if isinstance(value, np.ndarray):
        return [_freeze(inner) for inner in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [_freeze(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_thaw(key): _thaw(inner) for key, inner in value["mapping"]} if "mapping" in value else dict(value)
    return [_thaw(inner) for inner in value] if isinstance(value, list) else value
