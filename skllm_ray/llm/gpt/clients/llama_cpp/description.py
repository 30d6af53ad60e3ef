"""What can be told of a model from its file's header alone: nothing is loaded but its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import check_file, shards, supported_models
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.download import file_if_here
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import ModelMemory, memory_needed
from skllm_ray.tasks.base import Choices, Message

_QUESTION: Message = {"role": "user", "content": "Classify the text."}
_PRECISION = "LLAMA_FTYPE_"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A GGUF model, as its file describes it."""

    path: Path
    """The file; of a split model, the first one."""
    n_files: int
    title: str
    """The name that the authors gave it; empty if the file has none."""
    architecture: str
    parameters: str
    """The authors' word for its size, such as "4B"; empty if the file has none."""
    precision: str
    """The format of most weights, such as "Q4_K_M"; empty if the file has none."""
    licence: str
    n_vocab: int
    """Tokens in the vocabulary."""
    n_ctx_train: int | None
    """The longest context that it was trained for, in tokens; None if the file does not say."""
    memory: ModelMemory | None
    """What it takes; None where it cannot be told."""
    tail: str
    """The end of a rendered prompt, up to where labels are scored; empty where none can be rendered."""
    problem: str
    """Why it cannot answer prompts here; empty if nothing speaks against it."""
    notice: str = ""
    """What should be known of its prompts, such as that it has no chat template; empty if nothing."""


def describe(name: str, n_ctx: int | None = None) -> ModelDescription | None:
    """Return what the file of the model `name` says, or None if the file is not on this machine.

    Parameters
    ----------
    name : str
        What follows ``gguf::``: a catalogue name, a path, or ``owner/repo/file.gguf``.
    n_ctx : int or None, default=None
        Tokens of context that the memory is told for; None takes what a call would take.

    Raises
    ------
    UnknownModelError
        If the name is unknown.
    ModelLoadError
        If the file is not one that this llama.cpp can read.
    """
    path = file_if_here(name, SKLLMConfig.get_gguf_download_path())
    if path is None:
        return None
    check_file(path)
    engine = Engine(EngineOptions(str(path), vocab_only=True))
    try:
        return _described(engine, path, n_ctx or (supported_models[name].n_ctx if name in supported_models else None))
    finally:
        engine.close()


def _described(engine: Engine, path: Path, n_ctx: int | None) -> ModelDescription:
    tail, problem, notice = _tail(engine)
    architecture = engine.metadata("general.architecture") or ""
    trained = engine.metadata(f"{architecture}.context_length")  # llama.cpp fills its own field in whole loads alone
    return ModelDescription(
        path=path,
        n_files=len(shards(path.name)),
        title=engine.metadata("general.name") or "",
        architecture=architecture,
        parameters=engine.metadata("general.size_label") or "",
        precision=_precision(engine),
        licence=engine.metadata("general.license") or "",
        n_vocab=engine.n_vocab,
        n_ctx_train=int(trained) if trained and trained.isdigit() else None,
        memory=memory_needed(str(path), n_ctx),
        tail=tail,
        problem=problem,
        notice=notice,
    )


def _precision(engine: Engine) -> str:
    number = engine.metadata("general.file_type")
    for name, value in vars(engine.lib).items():
        if name.startswith(_PRECISION) and str(value) == number:
            return name.removeprefix(_PRECISION).removeprefix("ALL_").removeprefix("MOSTLY_")
    return ""


def _tail(engine: Engine) -> tuple[str, str, str]:
    """Return the end of a rendered prompt with the answer's opening, why there is none, and what to know of it."""
    if engine.is_embedding_model:
        return "", "it makes vectors, not answers: use it in GPTVectorizer", ""
    try:
        chat = ChatFormat(engine)
    except ModelLoadError as error:
        return "", str(error), ""
    tail = chat.render([_QUESTION]).rpartition(_QUESTION["content"])[2]
    return tail + Choices(("a",)).opening, "", " ".join(chat.notices)
