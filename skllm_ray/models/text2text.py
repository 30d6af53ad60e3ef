"""What summarizers and translators of all families share."""

from __future__ import annotations

from skllm_ray.errors import ConfigurationError
from skllm_ray.models.base import at_least_one
from skllm_ray.models.transformer import TextToText
from skllm_ray.prompts.templates import (
    FOCUSED_SUMMARY_PROMPT_TEMPLATE,
    SUMMARY_PROMPT_TEMPLATE,
    SUMMARY_SYSTEM_MESSAGE,
    TRANSLATION_PROMPT_TEMPLATE,
    TRANSLATION_SYSTEM_MESSAGE,
)
from skllm_ray.tasks.text import TextTask


class Summarizer(TextToText):
    """Base of the summarizers."""

    _column = "summary"

    max_words: int
    focus: str | None

    def _task(self) -> TextTask:
        self._check_parameters()
        values = {"max_words": str(self.max_words)}
        if self.focus is None:
            return TextTask(SUMMARY_PROMPT_TEMPLATE, values, SUMMARY_SYSTEM_MESSAGE)
        return TextTask(FOCUSED_SUMMARY_PROMPT_TEMPLATE, {**values, "focus": self.focus}, SUMMARY_SYSTEM_MESSAGE)

    def _check_parameters(self) -> None:
        at_least_one("max_words", self.max_words)
        if self.focus is not None:
            _refuse_blank("focus", self.focus)
        super()._check_parameters()


class Translator(TextToText):
    """Base of the translators."""

    _column = "translation"

    output_language: str

    def _task(self) -> TextTask:
        self._check_parameters()
        values = {"output_language": self.output_language}
        return TextTask(TRANSLATION_PROMPT_TEMPLATE, values, TRANSLATION_SYSTEM_MESSAGE)

    def _check_parameters(self) -> None:
        _refuse_blank("output_language", self.output_language)
        super()._check_parameters()


def _refuse_blank(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name} must be a str that is not blank; got {value!r}.")
