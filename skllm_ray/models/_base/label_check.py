"""Whether labels can work: alike, undescribed, overlapping, unused; and whether they fit into the model's context."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from itertools import combinations
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.tasks.base import normal_form
from skllm_ray.tasks.one_label import FEWEST, one_label

_ALIKE: Final = 0.85
_LIKED: Final = 0.25  # of the texts, given the same label
_FAR_MORE: Final = 3.0
_COMPETE: Final = 0.25
_FEW: Final = 5  # texts, from which on a pair of labels is told of
_MOST_SHOWN: Final = 10
_CODE: Final = re.compile(r"(?=[a-z]*\d)(?=\d*[a-z])[a-z\d]+|\d+")
"""A word of letters and digits, or of digits alone."""
_EMPTY: Final = frozenset({"misc", "miscellaneous", "unknown", "unspecified", "undefined", "tbd", "todo", "na"})
"""Words that tell a model nothing."""
_ROUGH: Final = 1_000  # labels, above which names are not compared in pairs

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing about the labels that should be known."""

    severity: Severity
    """"error": it cannot work so. "warning": it costs quality. "note": good to know."""
    kind: str
    """Such as "duplicate", "alike", "meaning", "description", "truth", "context", "overlap", "one label", "unused"."""
    labels: tuple[str, ...]
    """The labels that it is about."""
    message: str
    """What was found, and what to do."""


@dataclass(frozen=True)
class LabelReport:
    """What `check_labels` found.

    Examples
    --------
    >>> report = LabelReport(tuple(names_alike(["Refund", "refund ", "delivery"])))
    >>> print(report)
    error: 'Refund' and 'refund ' differ in case or spaces alone: an answer cannot tell them apart. Leave one out.
    >>> report.ok
    False
    """

    findings: tuple[Finding, ...]
    """The gravest first."""
    n_asked: int = 0
    """Texts that the model was asked about."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found that cannot work."""
        return not any(one.severity == "error" for one in self.findings)

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a table."""
        names = list(Finding.__dataclass_fields__)
        return pd.DataFrame([[getattr(one, name) for name in names] for one in self.findings], columns=names)

    def __str__(self) -> str:
        return "\n".join(f"{one.severity}: {one.message}" for one in self.findings) or "Nothing speaks against them."


def report_of(findings: Iterable[Finding], n_asked: int = 0) -> LabelReport:
    """Return a report, the gravest findings first."""
    order = ("error", "warning", "note")
    return LabelReport(tuple(sorted(findings, key=lambda one: order.index(one.severity))), n_asked)


# --- without asking -------------------------------------------------------------------------------------------------


def names_alike(names: Sequence[str]) -> list[Finding]:
    """Return labels that are the same but for case and spaces, and labels that look alike."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(normal_form(name), []).append(name)
    found = []
    for same in by_form.values():
        if len(same) > 1:
            first, second = same[0], same[1]
            how = "stands twice" if first == second else f"and {second!r} differ in case or spaces alone"
            told = f"{first!r} {how}: an answer cannot tell them apart. Leave one out."
            found.append(Finding("error", "duplicate", tuple(dict.fromkeys(same)), told))
    plain = {form: " ".join(form.replace("_", " ").replace("-", " ").split()) for form in by_form}
    for one, other in combinations(plain, 2) if len(plain) <= _ROUGH else ():
        matcher = SequenceMatcher(None, plain[one], plain[other], autojunk=False)
        if matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE or matcher.ratio() < _ALIKE:
            continue
        pair = by_form[one][0], by_form[other][0]
        told = f"{pair[0]!r} and {pair[1]!r} look alike. Rename one, or say in label_descriptions how they differ."
        found.append(Finding("warning", "alike", pair, told))
    return found


def meaningless(names: Sequence[str], descriptions: Mapping[str, str]) -> list[Finding]:
    """Return the labels whose names are codes, or say nothing, and which no description explains.

    Examples
    --------
    >>> [one.labels for one in meaningless(["refund", "misc b2", "CRD_7", "other"], {})]
    [('misc b2', 'CRD_7')]
    """
    found = []
    for name in names:
        words = re.findall(r"[^\W_]+", normal_form(name))
        says_nothing = any(_CODE.fullmatch(word) or word in _EMPTY for word in words)
        if says_nothing and not str(descriptions.get(name, "")).strip():
            found.append(name)
    if not found or len(found) == len(names):  # numbers that are all the labels there are, such as grades
        return []
    told = f"A model cannot know what these names mean: {_listed(found)}. Rename them, or describe them."
    return [Finding("warning", "meaning", tuple(found), told)]


def undescribed(names: Sequence[str], descriptions: Mapping[str, str]) -> list[Finding]:
    """Return the labels without a description."""
    missing = tuple(name for name in names if not str(descriptions.get(name, "")).strip())
    if not missing:
        return []
    if len(missing) == len(names):
        told = "No label has a description (label_descriptions): a line on each tells what the name does not."
        return [Finding("note", "description", missing, told)]
    told = f"{len(missing):,} of {len(names):,} labels have no description, and others have: {_listed(missing)}."
    return [Finding("warning", "description", missing, told)]


def truths_outside(names: Sequence[str], truths: Iterable[str]) -> list[Finding]:
    """Return true labels that are no candidates, and candidates that no row has."""
    counts = Counter(truths)
    total, known = counts.total(), set(names)
    outside = {label: n for label, n in counts.most_common() if label not in known}
    found = []
    if outside:
        near = {label: get_close_matches(label, names, 1, _ALIKE) for label in list(outside)[:_MOST_SHOWN]}
        some = ", ".join(
            f"{label[:80]!r} ({outside[label]:,}{f'; {close[0]!r}?' if close else ''})" for label, close in near.items()
        )
        more = f" and {len(outside) - len(near):,} more" if len(outside) > len(near) else ""
        n = sum(outside.values())
        told = (
            f"{n:,} of {total:,} true labels are no candidates, and cannot be found: {some}{more}. Add them to the "
            "labels, or tell what was renamed: renamed_labels (--renamed-labels)."
        )
        found.append(Finding("error" if n == total else "warning", "truth", tuple(outside), told))
    unused = tuple(name for name in names if name not in counts)
    if unused and len(unused) < len(names) and total >= FEWEST:
        told = f"No row of {total:,} has one of these as its true label: {_listed(unused)}."
        found.append(Finding("note", "truth", unused, told))
    return found


def beyond_context(model: str, context: int | None, bare: int, with_texts: Sequence[int]) -> list[Finding]:
    """Return what does not fit into a model's context, before anything is asked.

    Parameters
    ----------
    model : str
        Its name.
    context : int or None
        Tokens of its context; None where it is not known.
    bare : int
        Tokens of the prompt without a text.
    with_texts : sequence of int
        Tokens of the prompts of some texts.
    """
    if context is None:
        return []
    if bare >= context:
        told = (
            f"The prompt takes {bare:,} tokens without a text, and {model} has a context of {context:,}. Fewer labels, "
            "shorter descriptions or fewer examples are needed, or a model with a longer context."
        )
        return [Finding("error", "context", (), told)]
    long = sum(n >= context for n in with_texts)
    found = []
    if long:
        told = (
            f"{long:,} of {len(with_texts):,} prompts are longer than the context of {model} ({context:,} tokens; the "
            f"longest has {max(with_texts):,}, {bare:,} of them without a text): these rows fail, or are cut with "
            "request_options={'truncate': True} where the model takes it."
        )
        found.append(Finding("warning", "context", (), told))
    elif 2 * bare > context:
        told = f"The labels and the prompt fill {bare / context:.0%} of the context of {model}, without a text."
        found.append(Finding("note", "context", (), told))
    return found


# --- from answers ---------------------------------------------------------------------------------------------------


def answers_told(names: Sequence[str], labels: Sequence[str], truths: Sequence[str] = ()) -> list[Finding]:
    """Return whether one label was given to all or nearly all texts, and which labels were given to none.

    `truths` are the true labels of some rows, as far as known.
    """
    if len(labels) < FEWEST:
        return []
    label, n = Counter(labels).most_common(1)[0]
    told = one_label(label, n, len(labels), len(names))
    found = [Finding("warning", "one label", (label,), told)] if told else _liked(label, n, len(labels), names, truths)
    if n == len(labels):
        return found
    unused, counts = [name for name in names if name not in set(labels)], Counter(truths)
    missed = sorted((name for name in unused if counts[name]), key=lambda name: -counts[name])
    if missed:
        some = ", ".join(f"{name!r} ({counts[name]:,})" for name in missed[:_MOST_SHOWN])
        told = (
            f"Given to none of {len(labels):,} texts, though they are true of some of the {counts.total():,} rows that "
            f"were read: {some}{' and more' if len(missed) > _MOST_SHOWN else ''}. Rename them, or describe them."
        )
        found.append(Finding("warning", "unused", tuple(missed), told))
    never = tuple(name for name in unused if not counts[name])
    if never:
        told = f"{len(never):,} labels were given to none of {len(labels):,} texts: {_listed(never)}."
        found.append(Finding("note", "unused", never, told))
    return found


def _liked(label: str, n: int, n_texts: int, names: Sequence[str], truths: Sequence[str]) -> list[Finding]:
    """Return whether a model gives a label far more often than it is true, or than any of many would be."""
    share = Counter(truths)[label] / len(truths) if truths else 2 / len(names)
    if n < _LIKED * n_texts or n < _FAR_MORE * share * n_texts:
        return []
    of_rows = f", and is true of {share:.0%} of the rows" if truths else f", one of {len(names):,}"
    told = (
        f"{label!r} was given to {n:,} of {n_texts:,} texts{of_rows}: the model likes it, whatever the text. Before "
        "labels are renamed or merged, take that out with label_prior='uniform' (--label-prior uniform), or try a "
        "larger model."
    )
    return [Finding("warning", "liked label", (label,), told)]


def competing(names: Sequence[str], probabilities: NDArray[np.float64]) -> list[Finding]:
    """Return pairs of labels between which a model wavers.

    For a pair it is the share of probability that both have at once: the sum over texts of the smaller, of the sum of
    the larger. Only texts count in which the two are the likeliest.

    Parameters
    ----------
    names : sequence of str
        The labels.
    probabilities : ndarray of shape (n_texts, n_labels)
        What the model says.
    """
    if probabilities.shape[1] < 2 or not len(probabilities):
        return []
    best = np.sort(np.argsort(-probabilities, axis=1)[:, :2], axis=1)
    smaller = np.take_along_axis(probabilities, best, axis=1).min(axis=1)
    larger = probabilities.max(axis=1)
    pairs: dict[tuple[int, int], list[int]] = {}
    for row, (one, other) in enumerate(best.tolist()):
        pairs.setdefault((one, other), []).append(row)
    told = [
        (float(smaller[rows].sum() / larger[rows].sum()), len(rows), names[one], names[other])
        for (one, other), rows in pairs.items()
        if len(rows) >= _FEW
    ]
    told = sorted((one for one in told if one[0] >= _COMPETE), reverse=True)
    return [
        Finding(
            "warning",
            "overlap",
            (one, other),
            f"The model wavers between {one!r} and {other!r}: they are the likeliest two of {n:,} texts, and the "
            f"second has {share:.0%} of the first one's probability. Merge them, or describe how they differ.",
        )
        for share, n, one, other in told[:_MOST_SHOWN]
    ]


def given_together(sets: Sequence[Sequence[str]]) -> list[Finding]:
    """Return pairs of labels of which texts get both, or neither."""
    alone = Counter(label for labels in sets for label in set(labels))
    both = Counter(pair for labels in sets for pair in combinations(sorted(set(labels)), 2))
    found: list[Finding] = []
    for (one, other), n in both.most_common():
        share = n / (alone[one] + alone[other] - n)
        if n >= _FEW and share >= _ALIKE and len(found) < _MOST_SHOWN:
            told = f"{one!r} and {other!r} are given together, to {n:,} texts, and hardly ever alone. Merge them?"
            found.append(Finding("warning", "overlap", (one, other), told))
    return found


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_SHOWN:,} more" if len(labels) > _MOST_SHOWN else ""
    return ", ".join(label[:80] for label in labels[:_MOST_SHOWN]) + more
