"""Probabilities of labels from the log probabilities of an answer's tokens. No SDK here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_VALUE = re.compile(r'"label"\s*:\s*"')
_UNSEEN = 1e-9  # a label that stands in none of the alternatives


def label_log_probs(tokens: Sequence[dict[str, Any]], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Return the natural logarithm of each label's probability, normalised over the labels.

    The answer's own tokens give the probability of the label that was chosen; the alternatives of each token that
    begin another label give that label's. Where one alternative begins several labels, they share it evenly. So the
    numbers are as exact as the alternatives that the server tells, and a label among none of them is close to 0.

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
    text = "".join(str(token.get("token", "")) for token in tokens)
    found = _VALUE.search(text)
    start, close = (found.end(), '"') if found else (len(text) - len(text.lstrip()), "")
    written = [json.dumps(label, ensure_ascii=False)[1:-1] if close else label for label in labels]
    masses, so_far, at = [0.0] * len(labels), 1.0, 0
    for token in tokens:
        piece = str(token.get("token", ""))
        before, at = text[:at], at + len(piece)
        if at <= start:
            continue
        for other in token.get("top_logprobs") or []:
            if other["token"] != piece:
                _share((before + other["token"]), start, close, written, so_far * math.exp(other["logprob"]), masses)
        so_far *= math.exp(min(0.0, token["logprob"]))
        if close and close in text[start:at].replace('\\"', ""):
            break
    _share(text[: at if close else len(text.rstrip())], start, close, written, so_far, masses)
    total = sum(masses)
    if total <= 0:
        return None
    return tuple(math.log(max(mass / total, _UNSEEN)) for mass in masses)


def _share(text: str, start: int, close: str, written: Sequence[str], mass: float, masses: list[float]) -> None:
    """Give `mass` to the labels that `text` begins or holds from `start` on."""
    value = text[start:]
    if not value:
        return
    fitting = [
        index
        for index, label in enumerate(written)
        if (label + close).startswith(value) or (close and value.startswith(label + close))
    ]
    for index in fitting:
        masses[index] += mass / len(fitting)
