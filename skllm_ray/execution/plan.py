"""What a call asks of which models: one step after the other, in each block of rows.

Every call has a plan, most of one step. Dynamic few-shot has two: the texts are embedded, then asked about with the
examples that the vectors choose. A cascade has two: a fast model answers all rows, a strong one those of which the
fast one was unsure, and those that were sampled. Where its models are dynamic, a cascade has four.

::

    step takes                 which rows                                    what becomes of the answer
    (none)                     those that the step before answered           goes on from the one before
    Unsure(…)                  those with a score at or below a threshold    takes the place of the one before
    Sampled(…)                 those at some positions                       takes the place of the one before
    Audited(…)                 a share of them, by chance                    takes the place of the one before
    Promised(…)                all, until a certificate tells a threshold    takes the place of the one before

A row's result is what the last step that took it made of it; its cost is that of all steps. A row that fails in a step
is taken by none that goes on from it, and by one that takes unsure rows: it has no score. What fails for a reason
that all rows share ends the call, and no other model is asked in its place.

What a step sees of the earlier ones is the same for all: with a `FollowUpTask`, the rows as they stand. Other tasks see
the texts alone. A model that thinks before it answers is one step where one request does both:
a GGUF engine goes on from the thought that is in its memory, and a second step would have it read the prompt again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.base import BackendSpec
from skllm_ray.tasks.base import ASKED_IF_SET, FollowUpTask, Row, Task


@dataclass(frozen=True)
class Block:
    """Some rows of a call."""

    texts: Sequence[str]
    positions: Sequence[int] | None = None
    """Where they stand among all rows of the input, those without a text counted; None where nobody knows."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: Sequence[int]) -> Block:
        """Return some of the rows."""
        if isinstance(places, range) and places.step == 1:  # a slice: most are
            some = slice(places.start, places.stop)
            return Block(self.texts[some], None if self.positions is None else self.positions[some])
        positions = None if self.positions is None else [self.positions[i] for i in places]
        return Block([self.texts[i] for i in places], positions)


def label_probability(rows: Sequence[Row[Any]]) -> NDArray[np.float64]:
    """Return the probability of each row's label; -inf for a row without a valid answer, or without probabilities."""
    known = [row.reply.log_probs if row.valid else None for row in rows]
    return np.asarray([np.exp(max(one)) if one else -np.inf for one in known])


@dataclass(frozen=True)
class Unsure:
    """Takes the rows whose answer so far has a score at or below a threshold."""

    threshold: float
    threshold_tie: float = float("inf")
    """Of scores that equal the threshold, those with a tie breaker at or below it are taken."""
    tie_breakers: Callable[[Block], NDArray[Any]] | None = None
    """Returns a number for each row, the same whenever the row is asked about; None takes all equal scores."""
    score: Callable[[Sequence[Row[Any]]], NDArray[np.float64]] = label_probability
    """Returns how sure each row's answer is; a row with -inf is always taken."""
    stage: str = ""
    """What the rows that it takes are called, where not by their step's name."""

    def takes(self, block: Block, rows: Sequence[Row[Any]]) -> NDArray[np.bool_]:
        """Return which rows are taken."""
        scores = np.asarray(self.score(rows))
        keeps = scores > self.threshold
        if self.tie_breakers is not None and np.isfinite(self.threshold):
            keeps |= (scores == self.threshold) & (np.asarray(self.tie_breakers(block)) > self.threshold_tie)
        return np.asarray(~keeps)


@dataclass(frozen=True)
class Sampled:
    """Takes the rows at some positions, whatever their answer so far."""

    positions: frozenset[int]
    stage: str = ""
    """What the rows that it takes are called, where not by their step's name."""

    def takes(self, block: Block, rows: Sequence[Row[Any]]) -> NDArray[np.bool_]:
        """Return which rows are taken."""
        del rows
        if block.positions is None:
            raise ValueError("Rows are sampled by their positions, and these rows have none.")
        return np.asarray([position in self.positions for position in block.positions], np.bool_)


@dataclass(frozen=True)
class Promised:
    """Stands for the threshold that a certificate will tell; until there is one, it takes all rows.

    The terms are those of `skllm_ray.cascade.certify`. They stand here, since they are part of what a job asks.
    """

    max_disagreement: float
    """The largest share of all rows whose label may differ from the strong model's."""
    confidence: float
    """The probability with which that holds."""
    n_samples: int | None
    """Rows about which both models are asked; None takes a number by the size of the input."""
    seed: int
    """What the sample is drawn by."""
    audit_share: float = 0.0
    """The share of kept rows that the strong model is asked about all the same."""
    learns_score: bool = field(default=False, metadata=ASKED_IF_SET)
    """Whether one half of the sample teaches by what fast labels are kept, and the other certifies."""
    n_repeats: int = field(default=0, metadata=ASKED_IF_SET)
    """Rows of the sample that the strong model is asked about twice."""
    stage: str = ""
    """What the rows that it takes are called, where not by their step's name."""

    def takes(self, block: Block, rows: Sequence[Row[Any]]) -> NDArray[np.bool_]:
        """Return which rows are taken."""
        del rows
        return np.ones(len(block), np.bool_)


@dataclass(frozen=True)
class Audited:
    """Takes a share of the rows by chance, whatever their answer so far."""

    share: float
    """How many, between 0 and 1."""
    keys: Callable[[Block], NDArray[np.uint64]]
    """Returns a number for each row, evenly spread over all of 64 bits, the same whenever the row is asked about."""
    stage: str = ""
    """What the rows that it takes are called, where not by their step's name."""

    def takes(self, block: Block, rows: Sequence[Row[Any]]) -> NDArray[np.bool_]:
        """Return which rows are taken."""
        del rows
        return np.asarray(self.keys(block) < np.uint64(min(self.share, 1) * (2**64 - 1)))


@dataclass(frozen=True)
class Step:
    """One question to one model."""

    task: Task[Any]
    """How texts become requests, and replies become answers."""
    spec: BackendSpec
    """Which model answers."""
    takes: tuple[Unsure | Sampled | Promised | Audited, ...] = ()
    """Which rows are asked about: those that any of these takes; without any, those that the step before answered."""
    stage: str = ""
    """What the rows that it answers are called in `Row.stage`; as by the step before where it is empty."""

    def places(self, block: Block, rows: Sequence[Row[Any]], before: Mapping[int, str]) -> dict[int, str]:
        """Return the places in `block` of the rows that this step takes, each with the name of its stage.

        `rows` is how they stand so far, and `before` the places that the step before took. What failed for a reason
        that all rows share is taken by no step.
        """
        if not self.takes:
            return {i: self.stage or stage for i, stage in before.items() if rows[i].valid}
        found: dict[int, str] = {}
        for one in self.takes:
            for i in np.flatnonzero(one.takes(block, rows)).tolist():
                found.setdefault(i, one.stage or self.stage)
        return {i: found[i] for i in sorted(found) if not _has_ended(rows[i])}


Plan: TypeAlias = tuple[Step, ...]
"""The steps of a call, the first of which takes all rows. The last one's model is the one that the user named."""


def needs_positions(plan: Plan) -> bool:
    """Return whether a plan cannot be run over rows whose positions nobody knows."""
    return any(isinstance(one, Sampled) for step in plan for one in step.takes)


def row_step(plan: Plan) -> int:
    """Return the number of the step whose answers count the rows: the last that is asked about all."""
    return next((i for i, step in enumerate(plan) if step.takes), len(plan)) - 1


def leading_step(plan: Plan, number: int) -> int:
    """Return the number of the step whose rows a step takes: its own where it chooses them, else an earlier one's."""
    return next((i for i in range(number, 0, -1) if plan[i].takes), 0)


def strong_steps(plan: Plan) -> range:
    """Return the numbers of the steps that are asked about some of the rows: those of a cascade's strong model."""
    return range(leading_step(plan, len(plan) - 1), len(plan))


def promise_of(plan: Plan) -> Promised | None:
    """Return what a plan promises that no certificate tells yet; None where it promises nothing."""
    return next((one for step in plan for one in step.takes if isinstance(one, Promised)), None)


def steps_alone(plan: Plan, number: int) -> range:
    """Return the numbers of the steps that one step's answers take where all texts are asked about.

    They are the step itself, and the one before where it goes on from its answers.
    """
    return range(number - isinstance(plan[number].task, FollowUpTask), number + 1)


def part_of(plan: Plan, numbers: range) -> Plan:
    """Return some steps as a plan of their own, in which all texts are asked about."""
    return tuple(replace(plan[number], takes=()) for number in numbers)


def _has_ended(row: Row[Any]) -> bool:
    return row.error is not None and (row.error.fatal or row.error.kind == "cancelled")
