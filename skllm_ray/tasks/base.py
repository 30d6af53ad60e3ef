"""What travels between a task and a backend: requests, replies, rows. Pure data: no Ray, no SDK, no clock."""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

ErrorKind = Literal[
    "missing_text",
    "invalid_answer",
    "context_length",
    "bad_request",
    "content_filter",
    "timeout",
    "connection",
    "server_error",
    "malformed_response",
    "truncated",
    "rate_limit",
    "insufficient_quota",
    "authentication",
    "permission",
    "model_not_found",
    "not_supported",
    "model_crashed",
    "cancelled",
]
"""The kinds of failure that a row can end in; ``predict_details`` shows them in ``error_kind``."""
LOST: frozenset[ErrorKind] = frozenset({"timeout", "connection", "malformed_response"})
"""Those which leave open whether the server did the work, and wants to be paid for it."""

NOT_ALLOWED: Final = "The answer is not one that the task allows."
"""Why a row has no result, where its answer does not tell."""

HINTS: Final[Mapping[ErrorKind, str]] = {
    "missing_text": "Fill the text in, or drop the row.",
    "invalid_answer": "Say in the prompt or in label_descriptions what is meant, or take a larger model.",
    "context_length": "Shorten the text or the examples, or take a model with a longer context.",
    "bad_request": "Check request_options and the model's name against what the server says.",
    "truncated": "Allow a longer answer (request_options), or ask for a shorter one.",
    "content_filter": "Reword or drop the text, or change the provider's filter.",
    "timeout": "Is the server overloaded? SKLLMConfig.set_rate_limit(…, max_concurrency=…) asks less at once.",
    "connection": "Does the server run, and is its address right (set_gpt_url, set_azure_api_base)?",
    "server_error": "Look into the server's log, or try later.",
    "malformed_response": "Is the address that of the API itself? Most end in /v1, and a sign-in page answers too.",
    "rate_limit": "Declare your quota with SKLLMConfig.set_rate_limit, or try later.",
    "insufficient_quota": "Add credit or raise the budget in the provider's console.",
    "authentication": "Check the key (SKLLMConfig.set_openai_key, or key=…), or Google's credentials for Vertex AI.",
    "permission": "Check what the key, its organization (set_openai_org) or the Google project may use.",
    "model_not_found": "Check the model's or the deployment's name, whether the server has the model, and whether the "
    "address ends in /v1.",
    "not_supported": "Use predict, or a model that can do it, such as a gguf:: one.",
    "model_crashed": "Is there memory for the model and its context? Shorten the text, or take a smaller model.",
    "cancelled": "Mend what ended the job, and call again.",
}
"""What to do about each kind of failure."""


class Message(TypedDict):
    """One message of a conversation, in the form that chat APIs and chat templates share."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The labels that an answer is constrained to.

    The answer is a JSON object with the one key ``label``: a string, or, with `multiple`, an array of strings.
    """

    labels: tuple[str, ...]
    """The labels, in the order in which the prompt lists them."""
    multiple: bool = False
    """Whether any number of labels may apply."""
    max_labels: int = 1
    """With `multiple`, the largest number of labels in an answer."""
    best_only: bool = False
    """Whether the label alone is asked for: a backend may then spare itself the other labels' probabilities."""
    exact: bool = False
    """Whether a local model's probabilities must not depend, not in the last bits either, on the rows asked with it."""

    @property
    def opening(self) -> str:
        """The beginning that all answers share."""
        return '{"label": [' if self.multiple else '{"label": "'

    def answer(self, labels: Sequence[str]) -> str:
        """Return the answer that chooses `labels`.

        Examples
        --------
        >>> Choices(("a", "b")).answer(["b"])
        '{"label": "b"}'
        """
        value: object = list(labels) if self.multiple else labels[0]
        return json.dumps({"label": value}, ensure_ascii=False)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of an answer, in the subset that strict structured output allows."""
        one: dict[str, Any] = {"type": "string", "enum": list(self.labels)}
        value = {"type": "array", "items": one} if self.multiple else one
        return {"type": "object", "properties": {"label": value}, "required": ["label"], "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a local model's prompts are written, and whether it thinks before it answers."""

    template: str | None = None
    """A chat template in place of the model's own."""
    values: str = "{}"
    """Variables of the chat template, as JSON."""
    think: int = 0
    """The largest number of tokens that the model thinks; 0 lets it answer at once."""


@dataclass(slots=True)
class ChatRequest:
    """One row's question to a chat model. Nobody changes it.

    It is not frozen, as a `Row` is not: there is one for each row, and to make a frozen one takes four times as long.
    """

    messages: tuple[Message, ...]
    """The conversation; the last message is the user's."""
    choices: Choices | None = None
    """The labels that the answer is constrained to, if it is a classification."""
    json_schema: dict[str, Any] | None = None
    """The JSON schema of the answer, if it is another structured one."""
    max_output_tokens: int | None = None
    """The largest number of tokens in the answer; None leaves it to the model."""
    limit_is_hard: bool = False
    """Whether nothing may be sent without `max_output_tokens`, since a budget was reserved for it."""
    answer_bound: int | None = None
    """The most tokens that a whole answer can need, as the task knows it; None where it does not. It is no part of the
    question: what writes past it will not come to an end."""
    cut_text: str | None = None
    """The row's text as it stands in the last message, if a local model may cut its middle out where it is too long."""
    stop: tuple[str, ...] = ()
    """The strings before which a local model ends a free text."""
    tells_tokens: bool = False
    """Whether a local model is to tell the probabilities of the tokens that it writes."""
    style: PromptStyle = PromptStyle()
    """How a local model's prompt is written, and how long it thinks."""

    @property
    def is_free_text(self) -> bool:
        """Whether the answer has no form of its own, so that nothing in it tells where it should have ended."""
        return self.choices is None and self.json_schema is None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a reply cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """The share of `prompt_tokens` that was served from a cache."""
    cost_usd: float | None = None
    """What it cost, in US dollars; None where the price is not known."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no result. It holds neither the prompt nor a key."""

    kind: ErrorKind
    message: str
    retryable: bool = False
    """Whether asking again may help."""
    fatal: bool = False
    """Whether every other row would fail for the same reason (a wrong key, no quota): the job should stop."""
    retry_after_s: float | None = None
    """How long the server asked to wait, in seconds."""
    down: bool = False
    """Whether the server was not there: nobody took the connection, or a gateway found nobody behind it."""

    @property
    def hint(self) -> str:
        """What to do about it."""
        return HINTS[self.kind]


TRUNCATED: Final = RowError("truncated", "The answer was cut off at the largest number of tokens that it may have.")
"""The error of a free text that a token limit ended; an answer of another form tells by itself whether it is whole."""


UNSEEN_PROBABILITY: Final = 1e-9
"""Stands for the probability of a choice that a server told nothing of, because it is none of its few alternatives."""

NOT_ASKED: Final[Mapping[str, object]] = {"in_question": False}
"""Marks a task's field that changes nothing of what is asked."""
ASKED_IF_SET: Final[Mapping[str, object]] = {"in_question": "if set"}
"""Marks a task's field that came after the first release: at its default, it is no part of a question's identity."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A backend's answer to one request: a text or an error, never both, never an exception."""

    text: str | None = None
    log_probs: tuple[float, ...] | None = None
    """Natural logarithm of each choice's probability, normalised over the choices; shape (n_choices,). Where any number
    of choices may apply, that of the answer as a whole; shape (1,)."""
    usage: Usage = field(default_factory=Usage)
    error: RowError | None = None
    attempts: int = 1
    """How often the backend was asked."""
    model: str = ""
    """The model as the backend reported it."""
    label_mass: float | None = None
    """The probability that the model would answer with any of the choices at all, once it has begun an answer of that
    form, between 0 and 1; None where it is not known."""
    token_log_probs: tuple[tuple[int, float], ...] | None = None
    """Where each token of the text ends, in characters, and the natural logarithm of its probability; None where that
    is not known, or not asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A backend's vector for one text: a vector or an error, never both, never an exception."""

    vector: NDArray[np.float32] | None = None
    """The embedding, of shape (n_dims,)."""
    usage: Usage = field(default_factory=Usage)
    error: RowError | None = None
    attempts: int = 1
    """How often the backend was asked."""
    model: str = ""
    """The model as the backend reported it."""


@dataclass(slots=True)
class Row(Generic[T]):
    """What one text became. Nobody changes it; it is not frozen for the reason that a `ChatRequest` is not."""

    value: T | None
    """The parsed result; None where there is an `error` or the answer was not valid."""
    valid: bool
    """Whether the answer was one that the task allows."""
    reply: Reply
    """What the backend said."""
    request: ChatRequest | None = None
    """What the backend was asked, where the call keeps it; None where nothing was sent."""
    reason: str = ""
    """Why the answer is not valid, where there is more to say than that."""
    stage: str = ""
    """The name of the step that answered, where the plan names its steps."""
    replaced: Row[T] | None = None
    """The earlier answer that this one took the place of; None where there was none."""
    probability: float | None = None
    """The probability of the answer, where it has none of its choices'."""
    field_probabilities: Mapping[str, float | None] | None = None
    """That of each field of an answer that has several."""
    by_step: tuple[Usage | None, ...] = ()
    """What each step of a plan of several steps cost; None for one that was not asked."""

    @property
    def error(self) -> RowError | None:
        """Why the row failed, if it did."""
        return self.reply.error


def odd_lengths(vectors: Sequence[NDArray[np.float32] | None]) -> dict[int, RowError]:
    """Return an error for each vector that is not as long as most of them, by its position.

    Examples
    --------
    >>> list(odd_lengths([np.zeros(2), None, np.zeros(3), np.zeros(2)]))
    [2]
    """
    lengths = Counter(len(vector) for vector in vectors if vector is not None)
    if len(lengths) < 2:
        return {}
    usual = lengths.most_common(1)[0][0]
    return {
        position: RowError(
            "malformed_response", f"The vector has {len(vector):,} numbers, and most others have {usual:,}."
        )
        for position, vector in enumerate(vectors)
        if vector is not None and len(vector) != usual
    }


@runtime_checkable
class Task(Protocol[T]):
    """How texts become requests and replies become results. Frozen and picklable: it travels to the workers."""

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        ...

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[T]]:
        """Return one row per reply. Never raises for a bad answer: marks it."""
        ...


class FollowUpTask(ABC):
    """Base of the tasks whose requests depend on what earlier steps of the plan answered."""

    @abstractmethod
    def render_after(self, texts: Sequence[str], rows: Sequence[Row[Any]]) -> list[ChatRequest]:
        """Return one request per text; `rows` are its rows as they stand after the steps before."""

    @abstractmethod
    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return requests that are about as long as the real ones, where no earlier step has been asked."""


_THOUGHT = re.compile(
    r"\s*(?:<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z))",
    re.DOTALL | re.IGNORECASE,
)
_FINAL_CHANNEL = re.compile(
    r".*<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|\s*analysis.*assistantfinal", re.DOTALL
)
"""Where gpt-oss's own format, Harmony, turns to the answer; some servers leave its marks out, and its words in."""
_OTHER_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def answer_start(text: str) -> int:
    """Return where the answer begins in `text`: after what a reasoning model thinks aloud before it.

    Examples
    --------
    >>> text = "<think>a or b?</think>b"
    >>> text[answer_start(text) :]
    'b'
    """
    channel = _FINAL_CHANNEL.match(text) if "final" in text else None
    if channel is not None:
        return channel.end()
    if "</think" not in text and "THINK]" not in text and not text.lstrip().startswith("<"):
        return 0
    if _OTHER_CHANNEL.match(text):  # it never came to an answer
        return len(text)
    thought = _THOUGHT.match(text)
    if thought is not None:
        return thought.end()
    end = _END_OF_THOUGHT.search(text)  # some chat templates open the thought themselves
    opened = end is not None and text.lstrip()[:1] not in {"{", "["} and "<think" not in text[: end.start()]
    return end.end() if end is not None and opened else 0


def normal_form(label: str) -> str:
    """Return `label` as it is compared where no label is spelled so: without case, white space and Unicode form.

    Examples
    --------
    >>> normal_form("Very  Good ")
    'very good'
    """
    if not label.isascii():
        label = unicodedata.normalize("NFC", label)
    return " ".join(label.split()).casefold()
