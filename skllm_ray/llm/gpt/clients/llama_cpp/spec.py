"""Which GGUF model, and how it is loaded and asked: the spec that travels."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from skllm_ray.config import Confidence, GGUFResources, Price, RateLimit, SKLLMConfig
from skllm_ray.llm.base import Capabilities, ModelChoice, Placement, SecretResolver, StatefulSpec, Wanted
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import check_name, is_path, supported_models
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.download import file_if_here, local_file
from skllm_ray.llm.gpt.clients.llama_cpp.embedding import CutText
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.library import context_length, require_installed
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import memory_needed
from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
from skllm_ray.tasks.base import ChatRequest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GGUFSpec(StatefulSpec):
    """A GGUF model and how it is loaded. The settings of the driver travel in it."""

    name: str
    """What follows ``gguf::``: a catalogue name, a path, or ``owner/repo/file.gguf``."""
    n_gpu_layers: int = 0
    download_path: str = ""
    verbose: bool = False
    resources: GGUFResources = field(default_factory=GGUFResources)
    n_threads: int | None = None
    """llama.cpp threads; a model actor sets its own share, None takes this machine's cores, eight at most."""
    options: GGUFOptions = field(default_factory=GGUFOptions, compare=False)
    """How answers are asked for; does not concern how the model is loaded."""
    best_only: bool = field(default=False, compare=False)
    """Whether this call wants labels alone, without probabilities."""
    log_probs: bool = field(default=False, compare=False)
    """Whether this call needs probabilities, whatever `best_only` says."""
    confidence: Confidence = field(default="auto", compare=False)
    """Whether a call that shows probabilities takes time for them."""
    tells_tokens: bool = field(default=False, compare=False)
    """Whether this call wants the probabilities of what is written in a form."""

    @property
    def model(self) -> str:
        """The model's name, with its namespace."""
        return f"gguf::{self.name}"

    @property
    def capabilities(self) -> Capabilities:
        """What llama.cpp does; answers are held to a form unless scikit-llm's way of asking is wanted."""
        return Capabilities(
            gives_log_probs=self.options.decoding == "score",
            writes_labels=self.options.decoding != "score",
            streams=False,
            takes_json_schemas=self.options.decoding != "compat",
            embeds=True,
            stateful=True,
            calls_at_once=None,
            stays_open=True,
            retry=None,
            price=Price(0.0),
            cache=None,
        )

    @property
    def placement(self) -> Placement:
        """One actor per replica; a GPU each where layers go to a GPU."""
        given = self.resources
        default_gpus = 0.0 if self.n_gpu_layers == 0 else 1.0
        return Placement(
            num_cpus=given.num_cpus,
            num_gpus=default_gpus if given.num_gpus is None else given.num_gpus,
            min_replicas=given.min_replicas,
            max_replicas=given.max_replicas,
            cpu_replicas=given.cpu_replicas,
            keep_alive_s=given.keep_alive_s,
            placement_timeout_s=given.placement_timeout_s,
        )

    @property
    def packages(self) -> tuple[str, ...]:
        """llama.cpp's bindings."""
        return ("llama-cpp-python",)

    @property
    def files(self) -> tuple[str, str] | None:
        """The name on the hub, and the folder for downloads; None for a path, and for the model of the package."""
        return None if self.name == "demo" or is_path(self.name) else (self.name, self.download_path)

    @property
    def limit(self) -> RateLimit | None:
        """A local model has no quota."""
        return None

    @property
    def key(self) -> str:
        """The model alone: a changed GPU setting does not reload a loaded model."""
        return self.model

    @property
    def identity(self) -> str:
        """The model alone."""
        return self.model

    def asked_for(self, wanted: Wanted) -> Self:
        """Return the spec for a call that wants the best label alone, or probabilities of labels or fields."""
        if wanted == "confidence":
            is_off = self.confidence == "off"
            return replace(self, tells_tokens=not is_off, best_only=self.best_only or is_off)
        if wanted == "log_probs":
            return replace(self, log_probs=True)
        return replace(self, best_only=True) if wanted == "label" else self

    def for_replica(self, n_threads: int) -> Self:
        """Return the spec that one replica loads."""
        return replace(self, n_threads=n_threads)

    def without_gpu(self) -> Self:
        """Return the spec that a replica on CPUs loads."""
        return replace(self, n_gpu_layers=0)

    def adapt(self, requests: Sequence[ChatRequest], texts: Sequence[str]) -> list[ChatRequest]:
        """Return the requests as the options want them."""
        style = self.options.style
        adapted = [replace(request, style=style) for request in requests]
        if self.options.truncate:
            adapted = [replace(request, cut_text=text) for request, text in zip(adapted, texts, strict=True)]
        if self.options.decoding == "compat":
            adapted = [replace(request, choices=None, json_schema=None) for request in adapted]
        if self._best_only or self._exact:
            adapted = [self._constrained(request) for request in adapted]
        if self.tells_tokens:
            adapted = [
                request if request.json_schema is None else replace(request, tells_tokens=True) for request in adapted
            ]
        return [self._bounded(request) if request.choices is None else request for request in adapted]

    def _constrained(self, request: ChatRequest) -> ChatRequest:
        if request.choices is None:
            return request
        return replace(request, choices=replace(request.choices, best_only=self._best_only, exact=self._exact))

    @property
    def _best_only(self) -> bool:
        """Whether a search for the best label will do: among very many labels it is not exact."""
        return self.best_only and not self.log_probs and not self.options.exact

    @property
    def _exact(self) -> bool:
        if self.options.exact is None:
            return self.n_gpu_layers == 0
        return self.options.exact

    def adapt_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are to be embedded as the options want them."""
        return [CutText(text) for text in texts] if self.options.truncate else list(texts)

    def _bounded(self, request: ChatRequest) -> ChatRequest:
        if self.options.max_tokens is None and not self.options.stop:
            return request
        most = self.options.max_tokens or request.max_output_tokens
        return replace(request, max_output_tokens=most, stop=self.options.stop)

    def check(self) -> None:
        """Raise if llama.cpp is missing, the name is unknown, or the file is on this machine and damaged."""
        require_installed()
        check_name(self.name)

    def open(self, resolve_secret: SecretResolver) -> GGUFBackend:  # noqa: ARG002 - a local model has no secret
        """Load the model into this process, downloading the file first if needed."""
        path = local_file(self.name, self.download_path)
        known = supported_models.get(self.name)
        n_ctx = self.resources.n_ctx or (known.n_ctx if known else None)
        _logger.info("loading %s: %s", self.model, memory_needed(str(path), n_ctx))
        threads = self.n_threads or _own_threads()
        return GGUFBackend(path, self.model, self.n_gpu_layers, threads, n_ctx=n_ctx, verbose=self.verbose)

    def count_prompt_tokens(self, requests: Sequence[ChatRequest]) -> list[int] | None:
        """Return the tokens of each prompt by the model's own tokenizer; None where its file is not on this machine."""
        require_installed()
        path = file_if_here(self.name, self.download_path)
        if path is None:
            return None
        engine = Engine(EngineOptions(str(path), vocab_only=True))
        try:
            chat = ChatFormat(engine, self.options.style)
            opened = [request.choices.opening if request.choices else "" for request in requests]
            texts = [chat.render(request.messages) + begun for request, begun in zip(requests, opened, strict=True)]
            return [len(chat.tokens(text)) for text in texts]
        finally:
            engine.close()

    def context_tokens(self) -> int | None:
        """Return the tokens of context that a call opens; None where the model's file is not on this machine."""
        require_installed()
        path, known = file_if_here(self.name, self.download_path), supported_models.get(self.name)
        if path is None:
            return None
        engine = Engine(EngineOptions(str(path), vocab_only=True))
        try:
            trained = engine.metadata(f"{engine.metadata('general.architecture')}.context_length")
        finally:
            engine.close()
        if trained is None or not trained.isdigit():
            return None
        return context_length(int(trained), self.resources.n_ctx or (known.n_ctx if known else None))


def _own_threads() -> int:
    return min(8, os.cpu_count() or 1)


def gguf(choice: ModelChoice) -> GGUFSpec:
    """Return the spec of a GGUF model; a file's name becomes a path that means the same in every process."""
    name = choice.name
    if name not in supported_models and is_path(name):
        name = str(Path(name).expanduser().absolute())
    return GGUFSpec(
        name=name,
        n_gpu_layers=SKLLMConfig.get_gguf_max_gpu_layers(),
        download_path=SKLLMConfig.get_gguf_download_path(),
        verbose=SKLLMConfig.get_gguf_verbose(),
        resources=SKLLMConfig.get_gguf_resources(choice.name),
        confidence=SKLLMConfig.get_confidence(),
        options=GGUFOptions.parse(choice.options),
    )
