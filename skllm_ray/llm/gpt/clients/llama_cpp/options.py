"""What an estimator's ``request_options`` may say of a GGUF model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.gpt.clients.llama_cpp.templates import ChatTemplate, TemplateError, read_template, reserved
from skllm_ray.tasks.base import PromptStyle


@dataclass(frozen=True, slots=True)
class GGUFOptions:
    """What an estimator's ``request_options`` may say of a GGUF model."""

    decoding: Literal["score", "compat"] = "score"
    """"score" constrains answers to the labels; "compat" writes them freely, as scikit-llm does, and parses them."""
    truncate: bool = False
    """Whether the middle of a text that is too long for the context is cut out."""
    exact: bool | None = None
    """Whether a row's probabilities are those that it has alone, whoever its neighbours are; None: on a CPU, where
    probabilities are wanted and not the label alone."""
    max_tokens: int | None = None
    """The largest number of tokens in a free text; None lets the model and the context decide."""
    stop: tuple[str, ...] = ()
    """The strings before which a free text ends."""
    style: PromptStyle = field(default_factory=PromptStyle)
    """How prompts are written, and how long the model thinks."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Return the options in `given`.

        Raises
        ------
        ConfigurationError
            If one is unknown, or has a value that it cannot have, or a chat template cannot be used.
        """
        values = dict(given)
        stop = values.get("stop")
        if isinstance(stop, str | list | tuple):
            values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        for name, value in values.items():
            if name not in _OPTIONS or not _OPTIONS[name](value):
                raise ConfigurationError(
                    f"request_options={_shown(given)}: GGUF models do not take {name}={_shown(given[name])}.",
                    "They take 'decoding': 'score' or 'compat'; 'truncate' and 'exact': True or False; 'max_tokens' "
                    "and 'think': a positive int; 'stop': a str, or a list of up to 4; 'chat_template': a template, or "
                    "the path of a file with one; 'chat_template_kwargs': a dict of what JSON can hold.",
                )
        style = _style(values)
        return cls(style=style, **values)


def _style(values: dict[str, Any]) -> PromptStyle:
    """Take the options of prompts out of `values`."""
    given, think = values.pop("chat_template", None), values.pop("think", 0)
    variables = values.pop("chat_template_kwargs", {})
    ours = reserved(variables)
    if ours:
        raise ConfigurationError(
            f"request_options: chat_template_kwargs cannot hold {', '.join(map(repr, ours))}.",
            "This library gives the template these; give others, such as 'enable_thinking' or 'reasoning_effort'.",
        )
    try:
        source = None if given is None else read_template(given)
        if source is not None and importlib.util.find_spec("jinja2") is not None:
            ChatTemplate(source, values=variables, thinking=think > 0)
    except TemplateError as error:
        raise ConfigurationError(
            f"request_options: chat_template={_shown(given)} cannot be used: {error}.",
            "Give a Jinja template that writes the user's message, or the path of a file with one.",
        ) from None
    return PromptStyle(source, json.dumps(variables), think)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}…"


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "decoding": lambda value: value in ("score", "compat"),
    "truncate": lambda value: isinstance(value, bool),
    "exact": lambda value: isinstance(value, bool),
    "max_tokens": lambda value: type(value) is int and value > 0,
    "think": lambda value: type(value) is int and value > 0,
    "stop": lambda value: (
        isinstance(value, tuple) and len(value) <= 4 and all(isinstance(one, str) and one for one in value)
    ),
    "chat_template": lambda value: isinstance(value, str) and bool(value.strip()),
    "chat_template_kwargs": lambda value: (
        isinstance(value, dict) and all(isinstance(name, str) for name in value) and _is_json(value)
    ),
}
"""What `request_options` may hold, and which values."""
