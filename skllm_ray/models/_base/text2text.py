"""What summarizers and translators of all families share."""

from __future__ import annotations

from typing import ClassVar

from skllm_ray.models._base.constraints import Constraints, Text, Whole
from skllm_ray.models._base.transformer import TextToText
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

    _parameter_constraints: ClassVar[Constraints] = {"max_words": [Whole(1)], "focus": [Text(), None]}

    max_words: int
    focus: str | None

    def _task(self) -> TextTask:
        self._validate_params()
        values = {"max_words": str(self.max_words)}
        if self.focus is None:
            return TextTask(SUMMARY_PROMPT_TEMPLATE, values, SUMMARY_SYSTEM_MESSAGE)
        return TextTask(FOCUSED_SUMMARY_PROMPT_TEMPLATE, {**values, "focus": self.focus}, SUMMARY_SYSTEM_MESSAGE)


class Translator(TextToText):
    """Base of the translators."""

    _column = "translation"

    _parameter_constraints: ClassVar[Constraints] = {"output_language": [Text()]}

    output_language: str

    def _task(self) -> TextTask:
        self._validate_params()
        values = {"output_language": self.output_language}
        return TextTask(TRANSLATION_PROMPT_TEMPLATE, values, TRANSLATION_SYSTEM_MESSAGE)
