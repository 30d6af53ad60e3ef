"""From rows to what the user gets: labels, probabilities, a table of details."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from skllm_ray.errors import warn
from skllm_ray.tasks.base import NOT_ALLOWED, ChatRequest, Reply, Row, RowError, Usage
from skllm_ray.tasks.label_mass import low_mass

_DTYPES: Final = {
    "prediction": "object",
    "probability": "float64",
    "valid": "bool",
    "error_kind": "object",
    "error": "object",
    "attempts": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "cost_usd": "float64",
    "model": "object",
    "label_mass": "float64",
}
_NAN: Final = float("nan")
_ARROW: Final = {"object": pa.string(), "float64": pa.float64(), "bool": pa.bool_(), "int64": pa.int64()}

DETAIL_COLUMNS: Final = tuple(_DTYPES)
"""The columns of ``predict_details``, whatever happened."""

DETAIL_TYPES: Final = {name: _ARROW[dtype] for name, dtype in _DTYPES.items() if name != "prediction"}
"""The same columns in a Ray Dataset, after the results themselves."""


def missing_row() -> Row[Any]:
    """Return the row of a text that is missing: it was never sent, and cost nothing."""
    return Row(
        None, False, Reply(usage=Usage(), error=RowError("missing_text", "The text is missing or blank."), attempts=0)
    )


def details(
    predictions: Sequence[Any],
    rows: Sequence[Row[Any]],
    index: pd.Index[Any],
    requests: Sequence[ChatRequest | None] | None = None,
) -> pd.DataFrame:
    """Return one line per row, with :data:`DETAIL_COLUMNS`, and what was said if `requests` are given."""
    frame = details_of([list(predictions), *detail_values(rows)])
    if requests is not None:
        frame["prompt"] = pd.Series([_prompt(request) for request in requests], dtype=object)
        frame["raw_reply"] = pd.Series([row.reply.text for row in rows], dtype=object)
    frame.index = index
    return frame


def details_of(columns: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Return a table of the columns in :data:`DETAIL_COLUMNS`, each of its type."""
    return pd.DataFrame(
        {name: _series(column, dtype) for (name, dtype), column in zip(_DTYPES.items(), columns, strict=True)}
    )


def detail_values(rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
    """Return the values of the columns in :data:`DETAIL_TYPES`."""
    replies = [row.reply for row in rows]  # column by column: there may be millions of rows
    usages = [reply.usage for reply in replies]
    n_rows, valid = len(rows), [row.valid for row in rows]
    good = all(valid) and not any(reply.error for reply in replies)
    attempts, models = [reply.attempts for reply in replies], [reply.model for reply in replies]
    return [
        [_highest(row) for row in rows],
        valid,
        [None] * n_rows if good else [_kind(row) for row in rows],
        [None] * n_rows if good else [_message(row) for row in rows],
        attempts,
        [usage.prompt_tokens for usage in usages],
        [usage.completion_tokens for usage in usages],
        _costs([usage.cost_usd for usage in usages], attempts),
        models,
        [reply.label_mass for reply in replies],
    ]


def _series(values: Sequence[Any], dtype: str) -> pd.Series[Any]:
    """Return a column whose values may be arrays or lists themselves."""
    if dtype != "object":
        return pd.Series(values, dtype=dtype)
    return pd.Series(as_objects(values), dtype=object)


def as_objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return an array of shape (n,) with one value per cell, even where values are lists or arrays."""
    return np.fromiter(values, dtype=object, count=len(values))


def describe_failures(rows: Sequence[Row[Any]]) -> str:
    """Return what went wrong and how often, such as ``2 × timeout, 1 × bad_request``."""
    kinds = Counter(row.error.kind for row in rows if row.error is not None)
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())


def tell_failures(model: str, rows: Sequence[Row[Any]]) -> tuple[str, str]:
    """Return the message of a call's error: its failed rows, the first reason, and what to do."""
    message, hint = _told(model, rows, "failed")
    if all(row.error is not None for row in rows):
        return message, hint
    where = "The finished rows are in this error's .details; on_error='default' or 'coerce' returns instead."
    return message, f"{hint} {where}".strip()


def warn_failed(model: str, rows: Sequence[Row[Any]], mode: str) -> None:
    """Warn once of rows that failed and did not stop the call; a row without a text is no failure."""
    present = [row for row in rows if row.error is None or row.error.kind != "missing_text"]
    if any(row.error is not None for row in present):
        what = "took the default" if mode == "default" else "have no result"
        message, hint = _told(model, present, f"failed and {what}")
        more = "predict_details(X) shows each row's error; on_error='raise' raises instead."
        warn(" ".join(filter(None, (message, hint, more))))


def warn_failed_block(model: str, rows: Sequence[Row[Any]]) -> None:
    """Warn of a Dataset's failed rows on the worker, whose log the driver shows; without counts, so once a reason."""
    first = next((row.error for row in rows if row.error is not None and row.error.kind != "missing_text"), None)
    if first is not None:
        told = f"Rows of a Dataset failed: {model} failed with {first.kind}: {first.message} {first.hint}".strip()
        warn(f"{told} details=True adds a column with each row's error.")


def warn_ended(model: str, rows: Sequence[Row[Any]]) -> None:
    """Warn once where a row's failure kept others from being asked."""
    ended = _end(model, rows)
    if ended:
        warn(ended)


def _told(model: str, rows: Sequence[Row[Any]], failed: str) -> tuple[str, str]:
    """Return how many rows failed and why the first one did, and what to do about it."""
    errors = [row.error for row in rows if row.error is not None]
    first = next((error for error in errors if error.kind != "cancelled"), errors[0])
    ended = _end(model, rows)
    why = ended or f"{model} failed first with {first.kind}: {first.message}"
    message = f"{len(errors)} of {len(rows)} rows {failed}: {describe_failures(rows)}. {why}".rstrip(". ") + "."
    return message, "" if ended else first.hint


def _end(model: str, rows: Sequence[Row[Any]]) -> str:
    """Return why a call ended before all rows were asked, how many were not, and what to do; empty if it did not."""
    cause = next((row.error for row in rows if row.error is not None and row.error.fatal), None)
    if cause is None:
        return ""
    n_not_asked = sum(row.error is not None and row.error.kind == "cancelled" for row in rows)
    why = f"{cause.kind}: {cause.message} {cause.hint}".rstrip()
    return f"{model} failed for all rows alike, so {n_not_asked} of {len(rows)} rows were not asked ({why})"


def warn_invalid(rows: Sequence[Row[Any]], what: str, default: str) -> None:
    """Warn once, with a count, of answers that the task does not allow."""
    invalid = sum(not row.valid and row.error is None for row in rows)
    if invalid:
        warn(
            f"{invalid} of {len(rows)} answers {what} and took the default ({default}); "
            "predict_details(X) marks them valid=False."
        )


def warn_low_mass(model: str, rows: Sequence[Row[Any]]) -> None:
    """Warn once where the model would hardly answer with any of the labels: then they do not fit what is asked."""
    found = [row.reply.label_mass for row in rows if row.reply.label_mass is not None]
    told = low_mass(model, float(np.median(found)), len(found)) if found else ""
    if told:
        warn(told)


def draw(text: str, classes: NDArray[Any], probabilities: NDArray[np.float64], seed: int | None) -> Any:
    """Return a class drawn by `probabilities`, the same for the same text and seed in any order, subset or block."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    generator = np.random.default_rng([seed or 0, int.from_bytes(digest[:8], "little")])
    return classes[int(generator.choice(len(classes), p=probabilities))]


def _highest(row: Row[Any]) -> float:
    log_probs = row.reply.log_probs
    if not row.valid or not (log_probs or row.probability is not None):
        return _NAN
    return math.exp(max(log_probs)) if log_probs else row.probability  # type: ignore[return-value]  # there is one


def _kind(row: Row[Any]) -> str | None:
    if row.error is not None:
        return row.error.kind
    return None if row.valid else "invalid_answer"


def _message(row: Row[Any]) -> str | None:
    if row.error is not None:
        return row.error.message
    return None if row.valid else row.reason or NOT_ALLOWED


def _costs(costs: Sequence[float | None], attempts: Sequence[int]) -> list[float]:
    """Return 0 for a row that was not sent, and NaN where the price is not known."""
    return [cost if cost is not None else _NAN if tries else 0.0 for cost, tries in zip(costs, attempts, strict=True)]


def _prompt(request: ChatRequest | None) -> str | None:
    if request is None:
        return None
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in request.messages)
