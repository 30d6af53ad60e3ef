"""A batch job as one file: its settings, checked. :mod:`.job_estimator` makes the estimator that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError

from skllm_ray.batch.job.options import PRIVATE, JobOptions, OneOrMore
from skllm_ray.cli.labelled_file import why_unreadable
from skllm_ray.errors import ConfigurationError

__all__ = [
    "FAST", "JobFile", "checked_job", "job_schema", "labels_given", "read_job", "read_settings", "without_fast",
]  # fmt: skip

Task = Literal["classify", "multilabel", "cot", "few-shot", "summarize", "translate", "ner", "embed"]
FAST: Final = frozenset({
    "fast_request_options", "fast_input_price", "fast_output_price", "max_disagreement", "confidence", "n_samples",
    "audit_share", "n_repeats", "score",
})  # fmt: skip
"""Settings that say something of a fast model alone."""


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
    renamed_labels: dict[str, str] | None = Field(
        None, description="What the label column holds, and the label that it means: {'misc b2': 'refund'}."
    )
    n_examples: int | None = Field(None, ge=1, description="few-shot: nearest examples of each label; all by default.")
    label_prior: Literal["uniform"] | None = Field(
        None, description="classify and few-shot: 'uniform' removes the model's liking for some labels."
    )
    without_probabilities: bool = Field(
        False, description="Ask for no probabilities: several times as fast with GGUF models and many labels."
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
    return checked_job({**({} if path is None else read_settings("config", path)), **given})


def read_settings(parameter: str, path: str) -> dict[str, Any]:
    """Return what stands in a YAML file, by name; `parameter` is what named the file, for messages.

    Raises
    ------
    ConfigurationError
        If it cannot be read, or holds no settings.
    """
    try:
        told = yaml.safe_load(Path(path).read_text("utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{parameter}={path!r} cannot be read: {why_unreadable(error)}.") from None
    if not isinstance(told, dict):
        raise ConfigurationError(f"{parameter}={path!r} must hold settings by name; it holds a {type(told).__name__}.")
    return {str(name): value for name, value in told.items()}


def checked_job(told: Mapping[str, Any]) -> JobFile:
    """Return the job of some settings.

    Raises
    ------
    ConfigurationError
        Naming each setting that is unknown or cannot be, and what would work.
    """
    try:
        return JobFile(**told)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_complaint(one) for one in error.errors())) from None


def without_fast(job: JobFile) -> JobFile:
    """Return a job that asks its strong model alone."""
    return JobFile(**job.model_dump(exclude={"fast_model", *FAST}, exclude_unset=True))


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


# --- inside -------------------------------------------------------------------------------------------------------


def _complaint(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "the job"
    if error["type"] == "extra_forbidden":
        return f"{name}: is no setting"
    if error["loc"] and error["loc"][0] in PRIVATE:
        return f"{name}: {error['msg']}"
    given = error.get("input")
    quote = "; write it in quotes" if error["type"] == "string_type" and isinstance(given, (bool, int, float)) else ""
    return f"{name}: {error['msg']}; got {str(given)[:80]!r}{quote}"
