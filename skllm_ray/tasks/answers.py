"""Reading what models write: JSON among other words, labels in other spellings, texts in fences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from skllm_ray.tasks.base import answer_start, normal_form


def _agreed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object without the keys that it has twice with different values: nobody knows which one is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key in {key for key, value in pairs if found[key] != value}:
            del found[key]
    return found


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_agreed)  # line breaks inside strings are common
_FENCE = re.compile(r"^(`{3,})(?:[^\n`]*\n)?(.*?)\n?\1$", re.DOTALL)
_TOKENS_AT_END = re.compile(
    r"(?:\s*(?:<\|(?:return|end|im_end|eot_id|endoftext|end_of_text|eom_id|call)\|>|</s>|<end_of_turn>|<eos>))+\s*$"
)
_NAMED: Final = re.compile(r"[*_#>\s-]*labels?[*_\s]*[:=]\s*(\S.*)", re.IGNORECASE)
_MARKS: Final = "\"'`*_~\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb \t\r\n"  # emphasis and quotes
_SIGNS: Final = ".,;:!?\u3002\uff01"  # what ends a sentence
_BRACKETS: Final = "()[]{}<>#-"
_STRIPPED: Final = (_MARKS, _MARKS + _SIGNS, _MARKS + _SIGNS + _BRACKETS)
_MOST_BEGINNINGS: Final = 200  # of what may be JSON in one answer


def read_json(text: str | None, opening: str = "{", field: str | None = None) -> Any:
    """Return the JSON object, or with ``opening="["`` the array, in `text`; None where it holds none.

    What a reasoning model thought aloud before it does not count. Of several, the one with `field` is taken, or, where
    none has it, the first one; where several have it and do not agree, there is none.

    Examples
    --------
    >>> read_json('Sure: {"label": "a"}. The braces {here} mean nothing.')
    {'label': 'a'}
    >>> read_json('{"label": "a", "label": "b", "reason": "it is", "reason": "it is"}')
    {'reason': 'it is'}
    """
    text = final(text)
    if text[:1] == opening:
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError):
            pass
    found = list(_values(text, opening))
    if field is not None:
        named = [value for value in found if isinstance(value, dict) and key_of(value, field) is not None]
        if any(value_of(one, field) != value_of(named[0], field) for one in named[1:]):
            return None
        found = named or found
    return found[0] if found else None


def final(text: str | None) -> str:
    """Return an answer without what was thought before it, and without the tokens and white space around it.

    Examples
    --------
    >>> final("<|channel|>analysis<|message|>a or b?<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>")
    'b'
    """
    text = text or ""
    return _TOKENS_AT_END.sub("", text[answer_start(text) :]).strip()


def key_of(answer: Mapping[Any, Any], name: str) -> str | None:
    """Return the key of `answer` that is `name`, or is the only one that is so but for its case.

    Examples
    --------
    >>> key_of({"Label": "a"}, "label")
    'Label'
    """
    if name in answer:
        return name
    alike = [key for key in answer if isinstance(key, str) and key.strip().casefold() == name]
    return alike[0] if len(alike) == 1 else None


def value_of(answer: object, name: str) -> Any:
    """Return what `answer` holds under `name`; None where it is no object, or holds nothing under it."""
    key = key_of(answer, name) if isinstance(answer, Mapping) else None
    return None if key is None else answer[key]  # type: ignore[index]  # it has keys


def _values(text: str, opening: str) -> Iterator[Any]:
    """Yield the JSON values of a kind in `text`, those inside others left out."""
    at = 0
    for _ in range(_MOST_BEGINNINGS):
        at = text.find(opening, at)
        if at < 0:
            return
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        yield value


def unfenced(text: str) -> str:
    r"""Return `text` without the white space, and the fence of backticks, that a model may put around all of it.

    What a reasoning model thought aloud before it goes too.

    Examples
    --------
    >>> unfenced("```\nHello\n```")
    'Hello'
    """
    text = final(text)
    found = _FENCE.match(text)
    return found[2].strip() if found and found[1] not in found[2] else text


def labels_by_name(labels: Sequence[str]) -> dict[object, str]:
    """Map what a model may write to the label it means: the label itself, or, as ``(form,)``, its own normal form."""
    normal: dict[str, list[str]] = {}
    for label in labels:
        normal.setdefault(normal_form(label), []).append(label)
    return {(name,): found[0] for name, found in normal.items() if len(found) == 1} | {label: label for label in labels}


def find_label(answer: object, by_name: Mapping[object, str]) -> str | None:
    """Return the label that an answer means, if any: as it stands there, or without marks and signs around it.

    Examples
    --------
    >>> find_label("**Negative**.", labels_by_name(["positive", "negative"]))
    'negative'
    """
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)  # integer labels are asked for by their digits
    if not isinstance(answer, str):
        return None
    for form in dict.fromkeys((answer, *(answer.strip(signs) for signs in _STRIPPED))):
        label = by_name.get(form) or by_name.get((normal_form(form),))
        if label is not None:
            return label
    return None


def find_plain_label(text: str | None, by_name: Mapping[object, str]) -> str | None:
    """Return the label that is all of an answer without JSON, or all of its last line after ``label:``.

    Examples
    --------
    >>> find_plain_label("**Label:** positive", labels_by_name(["positive", "negative"]))
    'positive'
    """
    text = unfenced(text or "")
    label = find_label(text, by_name)
    if label is not None:
        return label
    named = _NAMED.fullmatch(text.rpartition("\n")[2].strip())
    return None if named is None else find_label(named[1], by_name)


def find_labels(answer: object, by_name: Mapping[object, str], max_labels: int) -> tuple[str, ...] | None:
    """Return the labels that an answer lists, each once; None where it lists something, and none of it is a label."""
    names = [answer] if isinstance(answer, str) else answer
    if not isinstance(names, list):
        return None
    found = dict.fromkeys(label for name in names if (label := find_label(name, by_name)) is not None)
    return tuple(found)[:max_labels] if found or not names else None
