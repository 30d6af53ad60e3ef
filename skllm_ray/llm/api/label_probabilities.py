"""Probabilities of labels from the log probabilities of an answer's tokens. No SDK here."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skllm_ray.tasks.base import UNSEEN_PROBABILITY, RowError, answer_start, normal_form

_LABEL = re.compile(r'"label"\s*:\s*(?:\[\s*)?("?)', re.IGNORECASE)
_QUOTED = re.compile(r'((?:[^"\\]|\\.)*)(")?', re.DOTALL)
_BARE = re.compile(r"[^,\]}\s]*")
_AROUND = "\"'`.*_ "  # what may stand around a label that is all of an answer
_LEAST = -700.0
_ROUNDING = 0.01
_ALL = 1.05


def no_log_probs(model: str) -> RowError:
    """Return the error of a request for probabilities to a model that gives none."""
    message = f"No log probabilities are given for {model}, so there is no predict_proba; predict works."
    return RowError("not_supported", message, fatal=True)


def read_log_probs(
    tokens: Sequence[dict[str, Any]], text: str, labels: Sequence[str]
) -> tuple[tuple[float, ...] | None, RowError | None]:
    """Return the labels' log probabilities; neither them nor an error where the answer `text` is no label.

    Where the tokens are not those of an answer that is one, or their numbers are none, there is an error: nothing may
    pass for a probability.
    """
    if not all(is_told(token) for token in tokens):
        return None, RowError("malformed_response", "The log probabilities of the answer's tokens are no such numbers.")
    found = label_log_probs(tokens, labels)
    if found is None and label_log_probs([{"token": text, "logprob": 0.0}], labels) is not None:
        return None, RowError("malformed_response", "The log probabilities are not those of the answer's tokens.")
    return found, None


def read_answer_log_prob(tokens: Sequence[dict[str, Any]]) -> tuple[tuple[float, ...] | None, RowError | None]:
    """Return the log probability of an answer of any number of labels, from where its first label begins.

    It is that of these labels in this order: no other order is told. What stands before them, such as a thought and the
    answer's form, does not count.

    Examples
    --------
    >>> tokens = [{"token": t, "logprob": math.log(p)} for t, p in [('{"label": ["', 0.1), ("a", 0.5), ('"]}', 0.8)]]
    >>> (found,), error = read_answer_log_prob(tokens)
    >>> round(math.exp(found), 2), error
    (0.4, None)
    """
    if not all(is_told(token) for token in tokens):
        return None, RowError("malformed_response", "The log probabilities of the answer's tokens are no such numbers.")
    pieces = [piece(token) for token in tokens]
    start, at, total = _Answer.find(b"".join(pieces)).start, 0, 0.0
    for token, one in zip(tokens, pieces, strict=True):
        at += len(one)
        total += min(0.0, token["logprob"]) if at > start else 0.0
    return (total,), None


def label_log_probs(tokens: Sequence[dict[str, Any]], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Return the natural logarithm of each label's probability, normalised over the labels.

    The answer's own tokens give the probability of the label that was chosen; the alternatives of each token that
    begin another label give that label's. Where one alternative begins several labels, they share it evenly. So the
    numbers are as exact as the alternatives that the server tells, and a label among none of them is close to 0.
    Labels are told in the spellings that classifications accept.

    Parameters
    ----------
    tokens : sequence of dict
        ``choices[0].logprobs.content`` of an OpenAI-compatible answer.
    labels : sequence of str
        The labels.

    Returns
    -------
    tuple of float or None
        None if the tokens hold no answer.

    Examples
    --------
    >>> def token(text, p, **others):
    ...     top = [{"token": t, "logprob": math.log(q)} for t, q in [(text, p), *others.items()]]
    ...     return {"token": text, "logprob": math.log(p), "top_logprobs": top}
    >>> tokens = [token('{"label": "', 1.0), token("yes", 0.75, no=0.25), token('"}', 1.0)]
    >>> [round(math.exp(p), 2) for p in label_log_probs(tokens, ["yes", "no"])]
    [0.75, 0.25]
    """
    pieces = [piece(token) for token in tokens]
    whole = b"".join(pieces)
    answer = _Answer.find(whole)
    shares, so_far, at = _Shares(labels, answer.form == "plain"), 1.0, 0
    for token, one in zip(tokens, pieces, strict=True):
        before, at = whole[:at], at + len(one)
        if at <= answer.start:
            continue
        for other in token.get("top_logprobs") or []:
            written = before + piece(other)
            if written != whole[:at]:
                # An alternative of the token that opens the answer may open it elsewhere.
                place = answer if len(before) >= answer.start else _Answer.find(written)
                shares.give(so_far * _probability(other), *place.label_in(written))
        so_far *= _probability(token)
        if answer.label_in(whole[:at])[1]:
            break
    label, is_whole = answer.label_in(whole[:at])
    shares.give(so_far, label, is_whole or answer.form == "plain")
    total = sum(shares.masses)
    if not shares.named or total <= 0:
        return None
    return tuple(math.log(max(mass / total, UNSEEN_PROBABILITY)) for mass in shares.masses)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Where a label stands in an answer's bytes: a JSON string, another JSON value, or all of the answer."""

    start: int
    form: Literal["quoted", "bare", "plain"]

    @classmethod
    def find(cls, written: bytes) -> _Answer:
        text = written.decode("utf-8", "surrogateescape")
        begins = answer_start(text)
        found = list(_LABEL.finditer(text, begins))
        if found:
            start, form = found[-1].end(), "quoted" if found[-1][1] else "bare"
        else:
            start, form = len(text) - len(text[begins:].lstrip()), "plain"
        return cls(len(text[:start].encode("utf-8", "surrogateescape")), form)  # type: ignore[arg-type]  # one of three

    def label_in(self, written: bytes) -> tuple[str, bool]:
        """Return what is written of the label, and whether that is all of it."""
        value = written[self.start :].decode("utf-8", "ignore")
        if self.form == "plain":
            return value.rstrip(), False
        if self.form == "bare":
            label = _BARE.match(value)[0]  # type: ignore[index]  # it matches anything
            return label, len(label) < len(value)
        quoted = _QUOTED.match(value)
        label, is_whole = quoted[1], bool(quoted[2])  # type: ignore[index]  # as above
        return (_unescaped(label) if "\\" in label else label), is_whole


class _Shares:
    """The probability of each label, as it comes together."""

    def __init__(self, labels: Sequence[str], is_plain: bool) -> None:
        self.masses = [0.0] * len(labels)
        self.named = False
        """Whether the answer itself is a label, rather than one of the tokens that it might have held."""
        self._labels = labels
        self._is_plain = is_plain
        normal = [normal_form(label) for label in labels]
        counts = Counter(normal)
        self._normal = [form if counts[form] == 1 else None for form in normal]  # two labels alike are told by spelling

    def give(self, mass: float, label: str, is_whole: bool) -> None:
        """Give `mass` to the labels that `label` is, or begins."""
        fitting = self._fitting(label, is_whole) if label else []
        if not fitting and self._is_plain and label.strip(_AROUND).strip():
            fitting = self._fitting(label.strip(_AROUND).strip(), is_whole)
        self.named = bool(fitting) and is_whole
        for index in fitting:
            self.masses[index] += mass / len(fitting)

    def _fitting(self, label: str, is_whole: bool) -> list[int]:
        if is_whole:
            exact = [i for i, one in enumerate(self._labels) if one == label]
            return exact or [i for i, one in enumerate(self._normal) if one == normal_form(label)]
        begun = [i for i, one in enumerate(self._labels) if one.startswith(label)]
        form = normal_form(label)
        return begun or [i for i, one in enumerate(self._normal) if one is not None and one.startswith(form)]


def piece(token: dict[str, Any]) -> bytes:
    """Return a token's bytes: its text may be less, where it holds only some of a character's bytes."""
    told = token.get("bytes")
    if isinstance(told, list):
        return bytes(told)
    return str(token.get("token") or "").encode("utf-8", "surrogateescape")


def is_told(token: dict[str, Any]) -> bool:
    """Return whether the probabilities at one place of an answer may be such: numbers, together not above 1."""
    tops = token.get("top_logprobs") or []
    if not isinstance(tops, list) or not all(isinstance(top, dict) for top in tops):
        return False
    if not _is_number(token.get("logprob")) or token["logprob"] < _LEAST:  # some servers write -9999 for "not known"
        return False
    told = {piece(top): _probability(top) for top in tops}
    return all(_is_number(top.get("logprob")) for top in tops) and sum(told.values()) < _ALL


def _is_number(told: object) -> bool:
    return isinstance(told, (int, float)) and not isinstance(told, bool) and told <= _ROUNDING


def _probability(token: dict[str, Any]) -> float:
    return math.exp(min(0.0, token["logprob"]))


def _unescaped(label: str) -> str:
    try:
        return str(json.loads(f'"{label}"'))
    except ValueError:  # it ends in half an escape
        return label
