"""Reading what models write: JSON among other words, labels in other spellings, texts in fences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from skllm_ray.tasks.base import answer_start, normal_form

_DECODER = json.JSONDecoder(strict=False)  # line breaks inside strings are common
_FENCE = re.compile(r"^(`{3,})(?:[^\n`]*\n)?(.*?)\n?\1$", re.DOTALL)


def read_json(text: str | None, opening: str = "{") -> Any:
    """Return the JSON object, or with ``opening="["`` the array, in `text`; None where it holds none.

    What a reasoning model thought aloud before it does not count.

    Examples
    --------
    >>> read_json('Sure: {"label": "a"}.')
    {'label': 'a'}
    """
    text = text or ""
    start, end = text.find(opening, answer_start(text)), text.rfind({"{": "}", "[": "]"}[opening])
    if start < 0 or end < start:
        return None
    try:
        return _DECODER.decode(text[start : end + 1])
    except (ValueError, RecursionError):
        return None


def unfenced(text: str) -> str:
    r"""Return `text` without the white space, and the fence of backticks, that a model may put around all of it.

    What a reasoning model thought aloud before it goes too.

    Examples
    --------
    >>> unfenced("```\nHello\n```")
    'Hello'
    """
    text = text[answer_start(text) :].strip()
    found = _FENCE.match(text)
    return found[2].strip() if found and found[1] not in found[2] else text


def labels_by_name(labels: Sequence[str]) -> dict[object, str]:
    """Map what a model may write to the label it means: the label itself, or, as ``(form,)``, its own normal form."""
    normal: dict[str, list[str]] = {}
    for label in labels:
        normal.setdefault(normal_form(label), []).append(label)
    return {(name,): found[0] for name, found in normal.items() if len(found) == 1} | {label: label for label in labels}


def find_label(answer: object, by_name: Mapping[object, str]) -> str | None:
    """Return the label that an answer means, if any."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)  # integer labels are asked for by their digits
    if not isinstance(answer, str):
        return None
    return by_name.get(answer) or by_name.get((normal_form(answer),))


def find_labels(answer: object, by_name: Mapping[object, str], max_labels: int) -> tuple[str, ...] | None:
    """Return the labels that an answer lists, each once; None where it lists something, and none of it is a label."""
    names = [answer] if isinstance(answer, str) else answer
    if not isinstance(names, list):
        return None
    found = dict.fromkeys(label for name in names if (label := find_label(name, by_name)) is not None)
    return tuple(found)[:max_labels] if found or not names else None
