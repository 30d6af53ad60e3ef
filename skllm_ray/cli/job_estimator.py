"""The estimator that a job file describes, made and fitted. The form itself, :mod:`.job_file`, imports no estimator."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import joblib

from skllm_ray import classification, text2text, vectorization
from skllm_ray.cli.job_file import FAST, JobFile, labels_given
from skllm_ray.cli.labelled_file import read_columns
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.registry import family_of, provider_of
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.models.vertex.tagging.ner import VertexExplainableNER

__all__ = ["prepare"]

_FITTED: Final = frozenset({
    "task", "labels", "labels_file", "label_descriptions", "default_label", "max_labels", "examples", "n_examples",
    "max_words", "focus", "language", "entities", "prompt_template", "request_options", "on_error", "random_state",
    "label_prior",
})  # fmt: skip
"""Settings that a fitted estimator has already."""
_CASCADING: Final = frozenset({"classify", "multilabel", "few-shot"})
"""Tasks that can have a fast model."""
_WITH_PRIOR: Final = ("classify", "few-shot")
"""Tasks whose scores can be freed of the labels' prior."""


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
    if job.without_probabilities:
        SKLLMConfig.set_confidence("off")
    if job.replicas is not None:
        SKLLMConfig.set_gguf_resources(max_replicas=job.replicas)


def _check_fast(job: JobFile) -> None:
    """Refuse settings of a fast model where there is none, or where no cascade can be."""
    given = sorted(FAST & job.model_fields_set)
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


def _labels(job: JobFile) -> list[str]:
    labels = labels_given(job)
    if not labels:
        raise ConfigurationError(f"labels is missing: {job.task} needs the candidate labels.", "--labels a,b,c")
    twice = [label for label, n in Counter(labels).items() if n > 1]
    if twice:
        raise ConfigurationError(f"labels: {twice[0][:80]!r} stands twice.", "Leave one out: --labels, --labels-file.")
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
    renamed = job.renamed_labels or {}
    return texts, [renamed.get(label, label) if isinstance(label, str) else label for label in labels]
