"""From an estimator's parameters to a spec, and from a spec to an open service."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, NotSupportedError
from skllm_ray.llm.base import SecretResolver
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.registry import provider_of, resolve
from skllm_ray.llm.submissions import Service
from skllm_ray.llm.tuning.spec import ServiceName, TuningSpec

OPENAI_CLOSES: Final = date(2027, 1, 6)
"""From this day on OpenAI takes no new tuning jobs."""

GEMINI: Final = ("gemini-3.5-flash-lite", "gemini-3.5-flash", "gemini-3.1-flash-lite")
GPT: Final = (
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4.1-2025-04-14",
    "gpt-4o-mini-2024-07-18",
    "gpt-4o-2024-08-06",
)

_GPT_NAMES = frozenset({*GPT, "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4.1", "gpt-4o-mini", "gpt-4o"})
_ENDED = ("text-bison", "text-unicorn", "chat-bison", "code-bison", "textembedding-gecko", "gemini-1", "gemini-2")
_GPT_ENDED = ("gpt-3.5", "babbage", "davinci", "curie", "ada", "text-davinci", "gpt-4-", "gpt-35")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes."""

    min_examples: int
    max_examples: int
    max_bytes: int
    max_tokens: int
    """In one example, its answer included."""


_OPENAI_LIMITS = Limits(10, 1_000_000, 512 * 2**20, 65_536)
LIMITS: Final[dict[ServiceName, Limits]] = {
    "vertex": Limits(1, 1_000_000, 2**30, 131_072),
    "openai": _OPENAI_LIMITS,
    "azure": _OPENAI_LIMITS,
    "custom_url": replace(_OPENAI_LIMITS, min_examples=1),
}
_CHARACTERS_PER_TOKEN = 4

REGIONS: Final = frozenset(
    [
        "africa-south1",
        "asia-east1",
        "asia-east2",
        "asia-northeast1",
        "asia-northeast2",
        "asia-northeast3",
        "asia-south1",
        "asia-south2",
        "asia-southeast1",
        "asia-southeast2",
        "asia-southeast3",
        "australia-southeast1",
        "australia-southeast2",
        "europe-central2",
        "europe-north1",
        "europe-north2",
        "europe-southwest1",
        "europe-west1",
        "europe-west2",
        "europe-west3",
        "europe-west4",
        "europe-west6",
        "europe-west8",
        "europe-west9",
        "europe-west10",
        "europe-west12",
        "me-central1",
        "me-central2",
        "me-west1",
        "northamerica-northeast1",
        "northamerica-northeast2",
        "northamerica-south1",
        "southamerica-east1",
        "southamerica-west1",
        "us-central1",
        "us-east1",
        "us-east4",
        "us-east5",
        "us-south1",
        "us-west1",
        "us-west2",
        "us-west3",
        "us-west4",
    ]
)
"""Google Cloud's regions. ``global``, ``us`` and ``eu`` are none: a tuning job runs in one region."""


def resolve_tuning(
    base_model: str,
    family: str,
    hyper_parameters: Mapping[str, Any],
    *,
    key: str | None = None,
    org: str | None = None,
    suffix: str = "",
    location: str | None = None,
    bucket: str | None = None,
    delete_data: bool = False,
    today: date | None = None,
) -> TuningSpec:
    """Return the spec of a job under the settings of this process, still without its data set.

    Raises
    ------
    ConfigurationError
        If a setting is missing or cannot work.
    NotSupportedError
        If the model cannot be tuned any more, or the service takes no new jobs.
    """
    given = tuple(sorted((name, value) for name, value in hyper_parameters.items() if value is not None))
    if family == "vertex":
        spec = _vertex_spec(base_model, location, bucket)
    else:
        spec = _gpt_spec(base_model, key, org, today or date.today())
    return replace(spec, hyper_parameters=given, suffix=suffix, delete_data=delete_data)


def _vertex_spec(base_model: str, location: str | None, bucket: str | None) -> TuningSpec:
    location, bucket = location or SKLLMConfig.get_google_location(), bucket or SKLLMConfig.get_google_bucket()
    _check_gemini(base_model)
    project = _vertex_project(location, bucket)
    bucket = str(bucket).removeprefix("gs://").strip("/")
    return TuningSpec(
        service="vertex", base_model=base_model, data_sha256="", project=project, location=location, bucket=bucket
    )


def _gpt_spec(base_model: str, key: str | None, org: str | None, today: date) -> TuningSpec:
    if not isinstance(base_model, str) or not base_model:
        raise ConfigurationError(f"base_model must be a non-empty str; got {base_model!r}.", _use(GPT))
    if provider_of(base_model).tuning == "none":
        raise NotSupportedError(f"base_model={base_model!r}: models of this provider cannot be tuned.", _use(GPT))
    chat = resolve(base_model, key, org)
    if not isinstance(chat, OpenAISpec):
        raise TypeError(f"{type(chat).__name__} has no fine-tuning API of OpenAI's form.")
    _check_gpt(chat.api, chat.model, today)
    chat.check()
    return TuningSpec(
        service=chat.api,
        base_model=chat.model,
        data_sha256="",
        base_url=chat.base_url,
        api_version=chat.api_version if chat.api == "azure" else None,
        org=chat.org,
        key_ref=chat.key_ref,
    )


def with_data(spec: TuningSpec, lines: list[bytes]) -> tuple[TuningSpec, bytes]:
    """Return `spec` with its data set's digest, and the data set.

    Raises
    ------
    InputError
        If there are too few or too many examples, or they are too long.
    """
    limits, n_examples = LIMITS[spec.service], len(lines)
    if n_examples < limits.min_examples:
        raise InputError(f"{spec.service} tunes on at least {limits.min_examples} examples; X has {n_examples}.")
    if n_examples > limits.max_examples:
        raise InputError(f"{spec.service} tunes on at most {limits.max_examples:,} examples; X has {n_examples:,}.")
    for position, line in enumerate(lines):
        n_tokens = len(line.decode()) // _CHARACTERS_PER_TOKEN
        if n_tokens > limits.max_tokens:
            raise InputError(
                f"X[{position}] makes an example of about {n_tokens:,} tokens; {spec.service} takes "
                f"{limits.max_tokens:,}.",
                "Shorten or split the text.",
            )
    data = b"".join(line + b"\n" for line in lines)
    if len(data) > limits.max_bytes:
        raise InputError(
            f"The data set has {len(data):,} bytes; {spec.service} takes {limits.max_bytes:,}.", "Take fewer examples."
        )
    return replace(spec, data_sha256=hashlib.sha256(data).hexdigest()), data


def open_service(spec: TuningSpec, resolve_secret: SecretResolver) -> Service:
    """Open the service of `spec` in this process."""
    if spec.service == "vertex":
        from skllm_ray.llm.vertex.tuning import VertexTuning

        return VertexTuning(spec)
    from skllm_ray.llm.gpt.clients.openai.tuning import OpenAITuning

    return OpenAITuning(spec, resolve_secret)


def _vertex_project(location: str, bucket: str | None) -> str:
    project = SKLLMConfig.get_google_project()
    if not project:
        raise ConfigurationError("google_project is not set.", "Call SKLLMConfig.set_google_project(…).")
    if location not in REGIONS:
        raise ConfigurationError(
            f"location={location!r} is no region, and a tuning job runs in one.",
            "Pass location='europe-west4', or call SKLLMConfig.set_google_location('us-central1').",
        )
    if not bucket:
        raise ConfigurationError(
            "No bucket is set for the data set.", "Pass bucket='my-bucket', or call SKLLMConfig.set_google_bucket(…)."
        )
    return project


def _check_gemini(base_model: str) -> None:
    if not isinstance(base_model, str) or not base_model:
        raise ConfigurationError(f"base_model must be a non-empty str; got {base_model!r}.", _use(GEMINI))
    name = base_model.rpartition("/")[2] if "publishers/google/models/" in base_model else base_model
    if name.startswith("projects/") or name in GEMINI:
        return
    if name.startswith(_ENDED):
        raise NotSupportedError(f"base_model={name!r} cannot be tuned any more: Google ended it.", _use(GEMINI))
    raise ConfigurationError(f"base_model={name!r} is not known to be tunable on Vertex AI.", _use(GEMINI))


def _check_gpt(api: str, name: str, today: date) -> None:
    if api == "custom_url":  # whatever the server tunes
        return
    if name.startswith(_GPT_ENDED):
        raise NotSupportedError(f"base_model={name!r} cannot be tuned any more.", _use(GPT))
    if api == "azure":
        return
    if name not in _GPT_NAMES and not name.startswith("ft:"):
        raise ConfigurationError(f"base_model={name!r} is not known to be tunable at OpenAI.", _use(GPT))
    if today >= OPENAI_CLOSES:
        raise NotSupportedError(
            f"OpenAI takes no new tuning jobs since {OPENAI_CLOSES}; models that were tuned before go on predicting.",
            f"Use VertexClassifier(base_model={GEMINI[0]!r}), base_model='azure::…', or a few-shot classifier.",
        )


def _use(models: tuple[str, ...]) -> str:
    return f"Use {', '.join(models[:-1])} or {models[-1]}."
