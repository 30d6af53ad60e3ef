"""The sample of a cascade's output: the file in which its answers stand, and what they tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skllm_ray.batch.output.journal import unpacked
from skllm_ray.batch.output.part import CERTIFICATE_PART, SYSTEM
from skllm_ray.batch.storage import Folder
from skllm_ray.cascade import AgreementScore, Certificate, agreement_features, certify, learning_half, random_keys
from skllm_ray.errors import OutputMismatchError
from skllm_ray.execution.plan import (
    Audited,
    Block,
    Plan,
    Promised,
    Sampled,
    Step,
    Unsure,
    label_probability,
    promise_of,
)
from skllm_ray.tasks.base import Row
from skllm_ray.tasks.cot import CoTTask, MultiLabelCoTTask

DRAWN: Final = f"{SYSTEM}/sample.json"
"""Tells how many rows were sampled of how many, before any is asked about."""


@dataclass(frozen=True)
class PositionKeys:
    """Numbers for rows, by where they stand."""

    seed: int
    purpose: str

    def __call__(self, block: Block) -> NDArray[np.uint64]:
        """Return one for each row."""
        return random_keys(self.seed, self.purpose, np.asarray(block.positions or (), np.uint64))


@dataclass(frozen=True)
class RowScore:
    """By what a fast model's rows are kept."""

    agreement: AgreementScore

    def __call__(self, rows: Sequence[Row[Any]]) -> NDArray[np.float64]:
        """Return one score for each row; -inf for one without a valid answer, or without probabilities."""
        probabilities = label_probability(rows)
        return self.agreement.of(probabilities, row_features(rows)) if self.agreement.weights else probabilities


@dataclass(frozen=True)
class Certified:
    """What the sample of an output told."""

    certificate: Certificate
    score: RowScore
    """By what fast labels are kept."""
    positions: NDArray[np.int64]
    """The sampled rows."""
    scores: NDArray[np.float64]
    """Of the rows that certify: all of the sample, or its half."""
    agree: NDArray[np.bool_]
    """Likewise."""
    answers: Mapping[str, Any]
    """What both models said, by the keys that journals have."""

    def plan(self, plan: Plan, promise: Promised) -> Plan:
        """Return the plan whose strong step takes what the certificate says."""
        certificate = self.certificate
        ties = PositionKeys(promise.seed, "ties")
        takes = (
            Sampled(frozenset(self.positions.tolist()), stage="sample"),
            Unsure(certificate.threshold, certificate.threshold_tie, ties, self.score),
            Audited(promise.audit_share, PositionKeys(promise.seed, "audit"), stage="audit"),
        )
        return tuple(replace(step, takes=takes) if promise in step.takes else step for step in plan)


def sample_table(
    positions: Sequence[int], rows: Sequence[Row[Any]], again: Mapping[int, Row[Any]], plan: Plan, answers: str
) -> pa.Table:
    """Return what is written down of a sample.

    Parameters
    ----------
    positions : sequence of int
        Where the sampled rows stand.
    rows : sequence of Row
        What both models said.
    again : mapping of int to Row
        What the strong one said when it was asked a second time, by the row's place among `rows`.
    plan : tuple of Step
        What was asked.
    answers : str
        All answers, as JSON, by the keys that journals have.
    """
    first, strong = fast_rows(rows), plan[-1]
    agree = np.asarray([agrees(row, strong) for row in rows], bool)
    scores, promise = label_probability(first), promise_of(plan)
    learned = AgreementScore()
    if promise is not None and promise.learns_score:
        half = learning_half(promise.seed, positions)
        features = row_features([row for row, here in zip(first, half, strict=True) if here])
        learned = AgreementScore.learned(scores[half], features, agree[half])
        scores = RowScore(learned)(first)
    told = {"answers": answers, "learned": json.dumps([learned.weights, learned.offset])}
    columns = {name: pa.array([value, *[None] * (len(rows) - 1)], pa.string()) for name, value in told.items()}
    same = [agrees(replace(again[at], replaced=row), strong, strong) if at in again else None
            for at, row in enumerate(rows)]  # fmt: skip
    return pa.table(
        {
            "position": pa.array(positions, pa.int64()),
            "score": pa.array(scores, pa.float64()),
            "agree": pa.array(agree, pa.bool_()),
            "same_again": pa.array(same, pa.bool_()),
            **columns,
        }
    )


def read_certified(output: Folder, promise: Promised) -> Certified | None:
    """Return what the sample of an output told; None where it was not asked yet.

    Raises
    ------
    OutputMismatchError
        If the file is damaged: another sample must not take its place.
    """
    try:
        with output.filesystem.open_input_file(output.at(CERTIFICATE_PART)) as source:
            table = pq.read_table(source)
        drawn = json.loads(output.read(DRAWN))
        positions = table["position"].to_numpy()
        scores, agree = table["score"].to_numpy(), np.asarray(table["agree"].to_pylist(), bool)
        answers = {key: unpacked(told) for key, told in json.loads(table["answers"][0].as_py()).items()}
        weights, offset = json.loads(table["learned"][0].as_py())
        again = [one for one in table["same_again"].to_pylist() if one is not None]
        n_rows, n_attempts = drawn["n_rows"], int(drawn.get("n_attempts", 1))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise OutputMismatchError(
            f"{output.at(CERTIFICATE_PART)}, which holds the sample that the output's promise rests on, cannot be read "
            f"({type(error).__name__}).",
            "Bring it back from a copy, or write to another output.",
        ) from None
    certifying = np.ones(len(positions), bool)
    if promise.learns_score:
        certifying = ~learning_half(promise.seed, positions)
    certificate = certify(
        scores[certifying],
        agree[certifying],
        n_rows - int((~certifying).sum()),
        max_disagreement=promise.max_disagreement,
        confidence=promise.confidence,
        tie_breakers=random_keys(promise.seed, "ties", positions[certifying]),
    )
    certificate = replace(certificate, n_repeated=len(again), n_changed=again.count(False), n_attempts=n_attempts)
    score = RowScore(AgreementScore(tuple(weights), offset))
    return Certified(certificate, score, positions, scores[certifying], agree[certifying], answers)


def fast_rows(rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return what the fast model said of each row."""
    return [row if row.replaced is None else row.replaced for row in rows]


def row_features(rows: Sequence[Row[Any]]) -> NDArray[np.float64]:
    """Return what a score is learned from; rows without probabilities have those of none."""
    known = [row.reply.log_probs if row.valid else None for row in rows]
    width = next((len(one) for one in known if one), 1)
    return agreement_features(np.exp([one or [-np.inf] * width for one in known]))


def agrees(row: Row[Any], strong: Step, other: Step | None = None) -> bool:
    """Return whether both answers that a row has had name the same label, or the same labels in any order.

    Parameters
    ----------
    row : Row
        The strong model's answer, which has replaced another.
    strong : Step
        What it was asked: with an explanation, the label is the first of two.
    other : Step or None, default=None
        What the replaced answer answers, if not the fast model's question.
    """
    one = row.replaced
    if one is None or not (one.valid and row.valid):
        return False
    return bool(_label(row.value, strong) == _label(one.value, other))


def _label(value: Any, step: Step | None) -> Any:
    label = value[0] if step is not None and isinstance(step.task, CoTTask | MultiLabelCoTTask) else value
    return set(label) if isinstance(label, tuple | list) else label
