"""A batch job as one file: its settings, checked, and the estimator that they describe."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import joblib
import yaml
from pydantic import Field, ValidationError

from skllm_ray import classification, text2text, vectorization
from skllm_ray.batch.job.options import PRIVATE, JobOptions, OneOrMore
from skllm_ray.cli.labelled_file import read_columns, why_unreadable
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.registry import family_of, provider_of
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.models.vertex.tagging.ner import VertexExplainableNER

__all__ = ["JobFile", "job_schema", "prepare", "read_job"]

Task = Literal["classify", "multilabel", "cot", "few-shot", "summarize", "translate", "ner", "embed"]
_FITTED: Final = frozenset({
    "task", "labels", "labels_file", "label_descriptions", "default_label", "max_labels", "examples", "n_examples",
    "max_words", "focus", "language", "entities", "prompt_template", "request_options", "on_error", "random_state",
    "label_prior",
})  # fmt: skip
"""Settings that a fitted estimator has already."""
_OF_FAST: Final = frozenset({
    "fast_request_options", "fast_input_price", "fast_output_price", "max_disagreement", "confidence", "n_samples",
    "audit_share", "n_repeats", "score",
})  # fmt: skip
"""Settings that say something of a fast model alone."""
_CASCADING: Final = frozenset({"classify", "multilabel", "few-shot"})
"""Tasks that can have a fast model."""
_WITH_PRIOR: Final = ("classify", "few-shot")
"""Tasks whose scores can be freed of the labels' prior."""


class JobFile(JobOptions):
    """The settings of ``skllm-ray run``, ``estimate`` and ``evaluate``: of the YAML file and of the flags alike.

    Examples
    --------
    >>> JobFile(task="classify", input=["in.parquet"], output="out", labels=["a", "b"]).text_column
    'text'
    """

    task: Task | None = Field(None, description="What is asked; not needed with an estimator.")
    estimator: str | None = Field(None, description="A fitted estimator that joblib.dump wrote, in place of a task.")
    input: OneOrMore = Field([], description="Files, folders or patterns: Parquet, CSV, JSON lines.")
    output: str | None = Field(None, description="The folder for the parts.")
    model: str | None = Field(None, description="Such as gpt-5.4-mini, gguf::gemma2-2b-q6, custom_url::…, vertex::….")
    fast_model: str | None = Field(None, description="A cheap model or student (….skops); kept where it is sure.")
    fast_request_options: dict[str, Any] | None = Field(None, description="The fast model's extra request parameters.")
    fast_input_price: float | None = Field(None, ge=0, description="fast model: US dollars per million prompt tokens.")
    fast_output_price: float | None = Field(None, ge=0, description="fast model: US dollars per million answer tokens.")
    max_disagreement: float = Field(0.05, gt=0, lt=1, description="fast model: the most rows with another label.")
    confidence: float = Field(0.95, gt=0, lt=1, description="fast model: how sure that is.")
    n_samples: int | None = Field(None, ge=1, description="fast model: rows that both models are asked about.")
    score: Literal["probability", "learned"] = Field("probability", description="fast model: by what it is kept.")
    n_repeats: int = Field(0, ge=0, description="fast model: sampled rows that the strong one is asked about twice.")
    audit_share: float = Field(0.005, ge=0, lt=1, description="fast model: kept rows that are checked all the same.")

    labels: list[str] = Field([], description="The candidate labels.")
    labels_file: str | None = Field(None, description="A text file with a label in each line.")
    label_descriptions: dict[str, str] | None = Field(None, description="What labels mean.")
    default_label: str = Field("Random", description="What stands for an answer that names no label.")
    max_labels: int = Field(5, ge=1, description="multilabel: the most labels of a text.")
    examples: str | None = Field(None, description="few-shot: a CSV, JSONL or Parquet file with labelled texts.")
    label_column: str = Field("label", description="few-shot and evaluate: the column with the labels.")
    n_examples: int | None = Field(None, ge=1, description="few-shot: nearest examples of each label; all by default.")
    label_prior: Literal["uniform"] | None = Field(
        None, description="classify and few-shot: 'uniform' removes the model's liking for some labels."
    )
    max_words: int = Field(15, ge=1, description="summarize: about how many words.")
    focus: str | None = Field(None, description="summarize: what to look at.")
    language: str = Field("English", description="translate: into which language.")
    entities: dict[str, str] | None = Field(None, description="ner: entities and what they are.")
    prompt_template: str | None = Field(None, description="A prompt of your own.")
    request_options: dict[str, Any] | None = Field(None, description="Extra request parameters.")
    on_error: Literal["coerce", "default"] = Field("coerce", description="Failed rows: null, or the default.")
    random_state: int | None = Field(None, description="Seed of random default labels.")

    requests_per_minute: int | None = Field(None, ge=1, description="The model's quota.")
    tokens_per_minute: int | None = Field(None, ge=1, description="The model's quota.")
    max_concurrency: int | None = Field(None, ge=1, description="The most requests in flight.")
    reply_cache: str | None = Field(None, description="A file that keeps replies for later jobs.")
    gpt_url: str | None = Field(None, description="The server of custom_url:: models.")
    gpu_layers: int | None = Field(None, ge=-1, description="gguf: layers on the GPU; -1 for all.")
    replicas: int | None = Field(None, ge=1, description="gguf: the most model actors.")
    address: str | None = Field(None, description="A Ray cluster's address.")


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of a job file."""
    return JobFile.model_json_schema()


def read_job(path: str | None, given: Mapping[str, Any]) -> JobFile:
    """Return the settings in a YAML file, under those that are `given` besides.

    Raises
    ------
    ConfigurationError
        Naming each setting that is unknown or cannot be, and what would work.
    """
    told: Any = {}
    if path is not None:
        try:
            told = yaml.safe_load(Path(path).read_text("utf-8-sig")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"config={path!r} cannot be read: {why_unreadable(error)}.") from None
        if not isinstance(told, dict):
            raise ConfigurationError(f"config={path!r} must hold settings by name; it holds a {type(told).__name__}.")
    try:
        return JobFile(**{**told, **given})
    except ValidationError as error:
        raise ConfigurationError("; ".join(_complaint(one) for one in error.errors())) from None


def prepare(job: JobFile, model: str | None = None) -> Any:
    """Return the fitted estimator that a job describes, its settings in ``SKLLMConfig``.

    Parameters
    ----------
    job : JobFile
        The job.
    model : str or None, default=None
        Asked in place of the job's.

    Raises
    ------
    ConfigurationError
        If the task lacks something, or the estimator cannot be loaded or has a setting already that the job gives.
    """
    model = model or job.model
    _check_fast(job)
    if job.estimator is not None:
        made = _loaded(job, model)
        SKLLMConfig._adopt(vars(made).get("_settings"))  # the job's own settings go over those that it came with
    elif job.task is not None:
        if job.label_prior is not None and job.task not in _WITH_PRIOR:
            raise ConfigurationError(
                f"label_prior is given beside {job.task}.", f"It goes with {' and '.join(_WITH_PRIOR)} alone."
            )
        made = _MAKERS[job.task](job, model) if job.fast_model is None else _cascade(job, model)
    else:
        raise ConfigurationError("task is missing.", "Name one, such as classify, or give an estimator.")
    _apply_settings(job, str(made.model))
    return made


def without_fast(job: JobFile) -> JobFile:
    """Return a job that asks its strong model alone."""
    return JobFile(**job.model_dump(exclude={"fast_model", *_OF_FAST}, exclude_unset=True))


# --- inside -------------------------------------------------------------------------------------------------------


def _apply_settings(job: JobFile, model: str) -> None:
    """Put what a job says of limits, caches and placement into ``SKLLMConfig``."""
    if job.requests_per_minute or job.tokens_per_minute or job.max_concurrency:
        SKLLMConfig.set_rate_limit(
            model,
            requests_per_minute=job.requests_per_minute,
            tokens_per_minute=job.tokens_per_minute,
            max_concurrency=job.max_concurrency,
        )
    if job.reply_cache:
        SKLLMConfig.set_reply_cache(job.reply_cache)
    if job.gpt_url:
        SKLLMConfig.set_gpt_url(job.gpt_url)
    if job.gpu_layers is not None:
        SKLLMConfig.set_gguf_max_gpu_layers(job.gpu_layers)
    if job.replicas is not None:
        SKLLMConfig.set_gguf_resources(max_replicas=job.replicas)


def _check_fast(job: JobFile) -> None:
    """Refuse settings of a fast model where there is none, or where no cascade can be."""
    given = sorted(_OF_FAST & job.model_fields_set)
    if job.fast_model is None:
        if given:
            raise ConfigurationError(f"{given[0]} is given without fast_model.", "Name it: --fast-model gguf::….")
    elif job.task not in _CASCADING:
        what = "an estimator" if job.task is None else job.task
        raise ConfigurationError(
            f"fast_model is given beside {what}.", f"It goes with {', '.join(sorted(_CASCADING))} alone."
        )


def _cascade(job: JobFile, model: str | None) -> Any:
    """Return the cascade of a job's fast and strong model, both fitted alike."""
    make, name = _MAKERS[str(job.task)], str(job.fast_model)
    if job.fast_input_price is not None or job.fast_output_price is not None:
        paid, out = job.fast_input_price or 0.0, job.fast_output_price or 0.0
        SKLLMConfig.set_price(name.removeprefix("vertex::"), input_per_million=paid, output_per_million=out)
    student = name.endswith(".skops")
    fast_job = job.model_copy(update={"request_options": job.fast_request_options})
    return classification.CascadeClassifier(
        classification.DistilledClassifier.load(name) if student else make(fast_job, name),
        make(job, model),
        max_disagreement=job.max_disagreement,
        confidence=job.confidence,
        n_samples=job.n_samples,
        audit_share=job.audit_share,
        n_repeats=job.n_repeats,
        score=job.score,
        random_state=job.random_state,
    )


def _classify(job: JobFile, model: str | None) -> Any:
    return _classifier(job, model, "ZeroShot{}Classifier", label_prior=job.label_prior).fit(None, _labels(job))


def _multilabel(job: JobFile, model: str | None) -> Any:
    made = _classifier(job, model, "MultiLabelZeroShot{}Classifier", max_labels=job.max_labels)
    return made.fit(None, [_labels(job)])


def _cot(job: JobFile, model: str | None) -> Any:
    return _classifier(job, model, "CoT{}Classifier").fit(None, _labels(job))


def _few_shot(job: JobFile, model: str | None) -> Any:
    if job.examples is None:
        raise ConfigurationError("examples is missing.", "few-shot takes a file with labelled texts: --examples FILE.")
    texts, labels = _examples(job, job.examples)
    more: dict[str, Any] = {"label_prior": job.label_prior}
    if job.n_examples is None:
        return _classifier(job, model, "FewShot{}Classifier", **more).fit(texts, labels)
    more["n_examples"] = job.n_examples
    if model is not None and not _is_vertex(model) and provider_of(model).embedder == "itself":
        more["vectorizer"] = vectorization.GPTVectorizer(model=model)
    return _classifier(job, model, "DynamicFewShot{}Classifier", **more).fit(texts, labels)


def _summarize(job: JobFile, model: str | None) -> Any:
    return _writer(job, model, "{}Summarizer", max_words=job.max_words, focus=job.focus)


def _translate(job: JobFile, model: str | None) -> Any:
    return _writer(job, model, "{}Translator", output_language=job.language)


def _ner(job: JobFile, model: str | None) -> Any:
    if not job.entities:
        raise ConfigurationError("entities is missing.", "Such as {'PERSON': 'a human being'}: --entities, as JSON.")
    made: Any = VertexExplainableNER if _is_vertex(model) else GPTExplainableNER
    return made(**_model(model), entities=job.entities, request_options=job.request_options, on_error="coerce").fit()


def _embed(job: JobFile, model: str | None) -> Any:
    made: Any = vectorization.VertexVectorizer if _is_vertex(model) else vectorization.GPTVectorizer
    return made(**_model(model), request_options=job.request_options, on_error="coerce").fit()


_MAKERS: Final[Mapping[str, Callable[[JobFile, str | None], Any]]] = {
    "classify": _classify,
    "multilabel": _multilabel,
    "cot": _cot,
    "few-shot": _few_shot,
    "summarize": _summarize,
    "translate": _translate,
    "ner": _ner,
    "embed": _embed,
}


def _classifier(job: JobFile, model: str | None, name: str, **more: Any) -> Any:
    made = getattr(classification, name.format("Vertex" if _is_vertex(model) else "GPT"))
    return made(
        **_model(model),
        default_label=job.default_label,
        prompt_template=job.prompt_template,
        label_descriptions=job.label_descriptions,
        random_state=job.random_state,
        request_options=job.request_options,
        on_error=job.on_error,
        **more,
    )


def _writer(job: JobFile, model: str | None, name: str, **more: Any) -> Any:
    made = getattr(text2text, name.format("Vertex" if _is_vertex(model) else "GPT"))
    return made(**_model(model), request_options=job.request_options, on_error="coerce", **more).fit()


def _model(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model.partition("::")[2] if _is_vertex(model) else model}


def _is_vertex(model: str | None) -> bool:
    return model is not None and family_of(model) == "vertex"


def labels_given(job: JobFile) -> list[str]:
    """Return the candidate labels as they were given, repeated ones too."""
    labels = list(job.labels)
    if job.labels_file is not None:
        try:
            lines = Path(job.labels_file).read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"labels_file={job.labels_file!r} cannot be read: {why_unreadable(error)}."
            ) from None
        labels += [line.strip() for line in lines if line.strip()]
    return labels


def _labels(job: JobFile) -> list[str]:
    labels = labels_given(job)
    if not labels:
        raise ConfigurationError(f"labels is missing: {job.task} needs the candidate labels.", "--labels a,b,c")
    return labels


def _loaded(job: JobFile, model: str | None) -> Any:
    """Return the estimator in a file, asking `model` if one is given."""
    path = str(job.estimator)
    both = sorted(_FITTED & job.model_fields_set)
    if both:
        raise ConfigurationError(
            f"{both[0]} is given beside an estimator, which has its own.",
            "Leave out either; model and label_column may stand beside an estimator.",
        )
    try:
        made = joblib.load(path)
    except (OSError, ValueError, LookupError, EOFError, ImportError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigurationError(
            f"estimator={path!r} cannot be loaded: {type(error).__name__}.",
            "Write it with joblib.dump(estimator, path), under the same versions of its packages.",
        ) from None
    if not hasattr(made, "_reading"):  # a file may hold an object of any class
        raise ConfigurationError(f"estimator={path!r} holds a {type(made).__name__}, no estimator of skllm_ray.")
    return made if model is None else made.set_params(model=model)


def _examples(job: JobFile, path: str) -> tuple[list[str], list[Any]]:
    """Return the texts and labels of a labelled file."""
    columns = {"text_column": job.text_column, "label_column": job.label_column}
    texts, labels = read_columns(path, columns, "examples")
    return texts, labels


def _complaint(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "the job"
    if error["type"] == "extra_forbidden":
        return f"{name}: is no setting"
    if error["loc"] and error["loc"][0] in PRIVATE:
        return f"{name}: {error['msg']}"
    given = error.get("input")
    quote = "; write it in quotes" if error["type"] == "string_type" and isinstance(given, (bool, int, float)) else ""
    return f"{name}: {error['msg']}; got {str(given)[:80]!r}{quote}"
