"""From what both models of a cascade said to what the user gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.models._base import results
from skllm_ray.models._base.labelling import SUMS, Rows
from skllm_ray.models._base.two_stages import Stages

STAGE_COLUMNS: Final = ("stage", "score", "fast_label", "strong_label")
"""What a cascade adds to the columns of ``predict_details``."""


@dataclass(frozen=True)
class Delivery:
    """The labels of a call and how each came about."""

    rows: Rows
    positions: NDArray[np.int64]
    """Where the rows stand about which the models were asked."""
    stages: Stages
    scores: NDArray[np.float64]
    """By what the fast labels of these rows were kept."""
    known: dict[int, Any]
    """The strong labels of rows that it was asked about before, by position."""

    def labels(self) -> NDArray[np.object_]:
        """Return one label for each row of the call; None where there is none."""
        found = np.full(len(self.rows), None, object)
        found[self.positions] = self.stages.fast.labels
        found[self.positions[self.stages.asked]] = self.stages.strong.labels
        for position, label in self.known.items():
            found[position] = label
        return found

    def failed(self) -> NDArray[np.int64]:
        """Return the positions of rows for which the strong classifier failed."""
        lost = np.asarray([label is None for label in self.stages.strong.labels], bool)
        return np.sort(self.positions[self.stages.asked[lost]])

    def details(self, labels: NDArray[np.object_]) -> pd.DataFrame:
        """Return one line for each row of the call."""
        stages, n_rows = self.stages, len(self.rows)
        table = results.details([None] * n_rows, [results.missing_row()] * n_rows, pd.RangeIndex(n_rows))
        kept = np.setdiff1d(np.arange(len(self.positions)), stages.asked)
        for name in results.DETAIL_COLUMNS:
            values = table[name].to_numpy(copy=True)
            values[self.positions[kept]] = stages.fast.details[name].to_numpy()[kept]
            told = stages.strong.details[name].to_numpy()
            if name in SUMS:
                told = told + stages.fast.details[name].to_numpy()[stages.asked]
            values[self.positions[stages.asked]] = told
            table[name] = values
        known = list(self.known)
        table.loc[known, "valid"] = True
        table.loc[known, ["error_kind", "error"]] = None
        table["prediction"] = pd.Series(labels, dtype=object)
        for name, told_of in self._stage_columns().items():
            table[name] = told_of
        table.index = self.rows.index
        return table

    def failures(self) -> tuple[str, str]:
        """Return the message of a call's error, and what to do."""
        details, failed = self.stages.strong.details, self.failed()
        lost = details[details["prediction"].isna().to_numpy()]
        kinds = ", ".join(f"{count} × {kind}" for kind, count in lost["error_kind"].value_counts().items())
        return (
            f"{len(failed)} of {len(self.rows)} rows failed in the strong classifier: {kinds}. {lost['error'].iloc[0]}",
            "The finished rows are in this error's .details; on_error='default' or 'coerce' returns instead.",
        )

    def _stage_columns(self) -> dict[str, pd.Series[Any]]:
        stages, n_rows, asked = self.stages, len(self.rows), self.positions[self.stages.asked]
        stage, fast, strong = (np.full(n_rows, None, object) for _ in range(3))
        score = np.full(n_rows, np.nan)
        stage[self.positions] = "fast"
        stage[asked] = "strong"
        stage[self.positions[stages.sample]] = "sample"
        stage[self.positions[stages.audited]] = "audit"
        stage[list(self.known)] = "strong"
        score[self.positions] = self.scores
        fast[self.positions], strong[asked] = stages.fast.labels, stages.strong.labels
        for position, label in self.known.items():
            strong[position] = label
        columns = zip(STAGE_COLUMNS, (stage, score, fast, strong), strict=True)
        return {name: pd.Series(values, dtype=values.dtype) for name, values in columns}
