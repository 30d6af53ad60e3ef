"""What a worker has to tell beside the rows of a block: warnings for the user, and what it learnt of the servers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from skllm_ray.errors import SkllmRayWarning, warn
from skllm_ray.llm.api.capabilities import Lessons, known, teach, unknown_to

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class News:
    """What happened on a worker during one block."""

    warnings: tuple[str, ...]
    lessons: Lessons


def with_news(work: Callable[[], T]) -> tuple[T, News]:
    """Return what `work` returns, and what the driver should hear of it. A worker's own warnings nobody reads."""
    before = known()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=SkllmRayWarning)
        done = work()
    for other in caught:
        if not issubclass(other.category, SkllmRayWarning):
            warnings.showwarning(other.message, other.category, other.filename, other.lineno)
    ours = tuple(str(one.message) for one in caught if issubclass(one.category, SkllmRayWarning))
    return done, News(ours, unknown_to(before))


class Answers(list[Any]):
    """What the actor of a model answers, with the warnings that arose."""

    warnings: tuple[str, ...] = ()


def with_warnings(work: Callable[[], Iterable[Any]]) -> Answers:
    """Return what `work` returns, and its warnings for whoever asked."""
    done, news = with_news(work)
    answers = Answers(done)
    answers.warnings = news.warnings
    return answers


def tell(news: News, told: set[str]) -> None:
    """Warn the user of what was not `told` yet in this call, and keep the lessons for the workers of the next."""
    teach(news.lessons)
    for message in news.warnings:
        if message not in told:
            told.add(message)
            warn(message)
