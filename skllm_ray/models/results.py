"""From rows to what the user gets: labels, probabilities, a table of details."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.errors import SkllmRayWarning
from skllm_ray.tasks.base import ChatRequest, Reply, Row, RowError, Usage

DETAIL_COLUMNS: Final = (
    "prediction",
    "probability",
    "valid",
    "error_kind",
    "error",
    "attempts",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "model",
)
"""The columns of ``predict_details``, whatever happened."""


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
    frame = pd.DataFrame(
        {
            "prediction": pd.Series(list(predictions), dtype=object),
            "probability": pd.Series([_highest(row) for row in rows], dtype="float64"),
            "valid": pd.Series([row.valid for row in rows], dtype="bool"),
            "error_kind": pd.Series([_kind(row) for row in rows], dtype=object),
            "error": pd.Series([_message(row) for row in rows], dtype=object),
            "attempts": pd.Series([row.reply.attempts for row in rows], dtype="int64"),
            "prompt_tokens": pd.Series([row.reply.usage.prompt_tokens for row in rows], dtype="int64"),
            "completion_tokens": pd.Series([row.reply.usage.completion_tokens for row in rows], dtype="int64"),
            "cost_usd": pd.Series([_cost(row) for row in rows], dtype="float64"),
            "model": pd.Series([row.reply.model for row in rows], dtype=object),
        }
    )
    if requests is not None:
        frame["prompt"] = pd.Series([_prompt(request) for request in requests], dtype=object)
        frame["raw_reply"] = pd.Series([row.reply.text for row in rows], dtype=object)
    frame.index = index
    return frame


def describe_failures(rows: Sequence[Row[Any]]) -> str:
    """Return what went wrong and how often, such as ``2 × timeout, 1 × bad_request``."""
    kinds = Counter(row.error.kind for row in rows if row.error is not None)
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())


def warn_invalid(rows: Sequence[Row[Any]], default: str) -> None:
    """Warn once, with a count, of answers that named no label."""
    invalid = sum(not row.valid and row.error is None for row in rows)
    if invalid:
        warnings.warn(
            f"{invalid} of {len(rows)} answers named none of the labels and took the default ({default}); "
            "predict_details(X) marks them valid=False.",
            SkllmRayWarning,
            stacklevel=3,
        )


def draw(text: str, classes: NDArray[Any], probabilities: NDArray[np.float64], seed: int | None) -> Any:
    """Return a class drawn by `probabilities`, the same for the same text and seed in any order, subset or block."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    generator = np.random.default_rng([seed or 0, int.from_bytes(digest[:8], "little")])
    return classes[int(generator.choice(len(classes), p=probabilities))]


def _highest(row: Row[Any]) -> float:
    log_probs = row.reply.log_probs
    return float(np.exp(max(log_probs))) if log_probs and row.valid else float("nan")


def _kind(row: Row[Any]) -> str | None:
    if row.error is not None:
        return row.error.kind
    return None if row.valid else "invalid_answer"


def _message(row: Row[Any]) -> str | None:
    if row.error is not None:
        return row.error.message
    return None if row.valid else "The answer names none of the labels."


def _cost(row: Row[Any]) -> float:
    """Return 0 for a row that was not sent or ran on a local model, and NaN where the price is not known."""
    known = row.reply.usage.cost_usd
    if known is not None:
        return known
    local = row.reply.attempts == 0 or row.reply.model.startswith("gguf::")
    return 0.0 if local else float("nan")


def _prompt(request: ChatRequest | None) -> str | None:
    if request is None:
        return None
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in request.messages)
