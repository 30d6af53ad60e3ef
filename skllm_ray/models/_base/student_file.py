"""A student on disk: the classifier in skops' format, which runs no code on loading, and a JSON file about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np

from skllm_ray.cascade import Certificate
from skllm_ray.errors import ConfigurationError, InputError, MissingExtraError
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.labelling import innermost
from skllm_ray.models._base.student import WordCharacters, words_and_pairs
from skllm_ray.models._base.taught import TaughtRows
from skllm_ray.tasks.base import FollowUpTask

_FORMAT: Final = 1
_TRUSTED: Final = [f"{one.__module__}.{one.__qualname__}" for one in (WordCharacters, words_and_pairs)]
S = TypeVar("S")


def prompt_hash(teacher: Any) -> str | None:
    """Return a hash of what a language model is asked; None of other classifiers, and where texts choose examples."""
    model, _ = innermost(teacher)
    if not isinstance(model, LLMClassifier):
        return None
    task = model._plan(model._spec())[-1].task
    if isinstance(task, FollowUpTask):
        return None
    messages = task.render(["{text}"])[0].messages
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def save_student(student: Any, path: str | PathLike[str], certificate: Certificate | None) -> None:
    """Write a student's two files."""
    skops = _skops()
    about = {
        "format": _FORMAT,
        "skllm_ray": _version(),
        "teacher": _name_of(student.teacher_),
        "prompt_sha256": student.prompt_hash_,
        "labels": student.classes_.tolist(),
        "n_samples": student.n_samples,
        "n_taught": student.n_taught_,
        "random_state": student.random_state,
        "certificate": None if certificate is None else asdict(certificate),
        "promise": None if certificate is None else str(certificate),
        "taught": student.taught_.labels,
    }
    told = json.dumps(about, indent=1, ensure_ascii=False)
    skops.dump(student.student_, path)
    Path(path).with_suffix(".json").write_text(told, "utf-8")


def load_student(kind: type[S], path: str | PathLike[str], teacher: Any, trusted: list[str]) -> S:
    """Return the student in two files.

    Raises
    ------
    InputError
        If the file about it is of a later version, or is not there.
    ConfigurationError
        If `teacher` is another one than taught it.
    """
    skops, beside = _skops(), Path(path).with_suffix(".json")
    try:
        about = json.loads(beside.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{beside} tells nothing of the student: {error}", "It is written with the other file."
        ) from None
    if about["format"] != _FORMAT:
        raise InputError(f"{beside} is of the format {about['format']}.", "Load it with the version that wrote it.")
    _check_teacher(teacher, about)
    found: Any = kind(teacher, n_samples=about["n_samples"], random_state=about["random_state"])  # type: ignore[call-arg]
    found.student_ = skops.load(path, trusted=[*_TRUSTED, *trusted])
    found.classes_ = np.asarray(about["labels"])
    found.teacher_, found.prompt_hash_, found.n_taught_ = teacher, about["prompt_sha256"], about["n_taught"]
    found.taught_ = TaughtRows(about["taught"])
    if about["certificate"] is not None:
        found.certificate_ = Certificate(**about["certificate"])
    return cast("S", found)


def _check_teacher(teacher: Any, about: dict[str, Any]) -> None:
    if teacher is None:
        return
    given = {"teacher": _name_of(teacher), "prompt_sha256": prompt_hash(teacher)}
    other = next((name for name, value in given.items() if value != about[name]), None)
    if other is not None:
        raise ConfigurationError(
            f"teacher is another one than taught the student: its {other} is {given[other]!r}, not {about[other]!r}."
        )


def _name_of(teacher: Any) -> str | None:
    if teacher is None:
        return None
    model, _ = innermost(teacher)
    name = type(model).__name__
    return f"{name}({model.model!r})" if isinstance(model, LLMClassifier) else name


def _version() -> str:
    try:
        return metadata.version("skllm-ray")
    except metadata.PackageNotFoundError:  # it runs from its sources
        return ""


def _skops() -> Any:
    try:
        import skops.io
    except ImportError:
        raise MissingExtraError.for_extra("skops", "skops") from None
    return skops.io
