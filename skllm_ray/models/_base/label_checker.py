"""Checks a fitted classifier's labels, with a sample of texts or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skllm_ray.cascade import random_keys
from skllm_ray.errors import warn
from skllm_ray.llm.registry import count_prompt_tokens
from skllm_ray.models._base.inputs import as_texts
from skllm_ray.models._base.label_check import (
    Finding,
    LabelReport,
    answers_told,
    beyond_context,
    competing,
    given_together,
    meaningless,
    names_alike,
    report_of,
    truths_outside,
    undescribed,
)
from skllm_ray.tasks.base import Row
from skllm_ray.tasks.one_label import one_for_all

if TYPE_CHECKING:
    from skllm_ray.models._base.classifier import LLMClassifier

_MANY: Final = 50
"""Different texts, from which on it is told that all have one label."""


def check_labels(model: LLMClassifier, X: Any, y: Any, n_samples: int) -> LabelReport:
    """Return what speaks against a fitted classifier's labels; see `LLMClassifier.check_labels`."""
    texts = [] if X is None else [text for text in as_texts(X).values if text is not None]
    truths = None if y is None else _names_in(model, y)
    found = before_asking(model, texts, truths)
    order = np.argsort(random_keys(0, "labels", np.arange(len(texts))))[:n_samples]
    chosen = [texts[at] for at in np.sort(order)]
    if not chosen or any(one.severity == "error" and one.kind == "context" for one in found):
        return report_of(found)
    scored = model._gives_scores and model._spec().capabilities.gives_log_probs
    _, rows, _ = model._run(chosen, "coerce", log_probs=scored)
    return report_of([*found, *from_answers(model, rows, truths)], len(chosen))


def warn_one_label(X: Any, labels: Sequence[Any], n_candidates: int) -> None:
    """Warn where many different texts were all given one label."""
    if len(labels) < _MANY or labels[0] is None or any(label != labels[0] for label in labels):
        return
    n_texts = len(set(as_texts(X).values))
    if n_texts >= _MANY and n_candidates > 1:
        warn(one_for_all(labels[:n_texts], n_candidates))


def _names_in(model: LLMClassifier, y: Any) -> list[str]:
    """Return the names of true labels, of several for a row all of them; a foreign one is its own name."""
    by_label = {str(label): name for label, name in zip(model.classes_.tolist(), model._names(), strict=True)}
    labels = [label for row in y for label in (row if isinstance(row, list | tuple | set | np.ndarray) else [row])]
    return [by_label.get(str(label), str(label)) for label in labels if label is not None]


def before_asking(
    model: LLMClassifier, texts: Sequence[str], truths: Sequence[str] | None, given: Sequence[str] | None = None
) -> list[Finding]:
    """Return what is found without asking anything.

    Parameters
    ----------
    model : LLMClassifier
        Fitted.
    texts : sequence of str
        Some texts; may be empty.
    truths : sequence of str or None
        Their true labels, by name.
    given : sequence of str or None, default=None
        The labels as they were given, where `fit` has merged equal ones.
    """
    names = model._names()
    descriptions = model._descriptions()
    found = names_alike(names if given is None else given)
    found += meaningless(names, descriptions) + undescribed(names, descriptions)
    if truths is not None:
        found += truths_outside(names, truths)
    step = model._plan(model._spec())[-1]
    counted, _ = count_prompt_tokens(step.spec, step.task.render(["", *texts]))
    return found + beyond_context(model.model, step.spec.context_tokens(), counted[0], counted[1:])


def from_answers(model: LLMClassifier, rows: Sequence[Row[Any]], truths: Sequence[str] | None = None) -> list[Finding]:
    """Return what the answers to some texts tell of the labels; `truths` are the true labels of some rows."""
    names, answers = model._names(), [row.value for row in rows if row.valid and row.value is not None]
    labels = [answer[0] if model._explains else answer for answer in answers]
    if labels and not isinstance(labels[0], str):
        flat = [label for several in labels for label in several]
        return answers_told(names, flat, truths or ()) + given_together(labels)
    known = [row.reply.log_probs for row in rows if row.valid and row.reply.log_probs is not None]
    told = [one for one in known if len(one) == len(names)]
    overlaps = competing(names, np.exp(told)) if told else []
    return answers_told(names, labels, truths or ()) + overlaps
