"""What the rows of a cascade's part were answered by, and how many audited labels differ."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def count_stages(table: pa.Table, prefix: str) -> dict[str, Any]:
    """Return the fields of a unit's summary that tell of its stages; none where there are no stages.

    Parameters
    ----------
    table : pyarrow.Table
        A part.
    prefix : str
        What stands before the names of our columns.
    """
    if f"{prefix}stage" not in table.column_names:
        return {}
    stages = table.column(f"{prefix}stage")
    audited = table.filter(pc.fill_null(pc.equal(stages, "audit"), False))
    names = ("valid", "prediction", "fast_label")
    answers = zip(*(audited.column(f"{prefix}{name}").to_pylist() for name in names), strict=True)
    told = [_other(strong, fast) for valid, strong, fast in answers if valid]
    counts = {one["values"]: one["counts"] for one in pc.value_counts(stages.drop_null()).to_pylist()}
    return {"stages": counts, "audit_differs": sum(told), "audit_failed": audited.num_rows - len(told)}


def _other(one: Any, other: Any) -> bool:
    """Return whether two labels, or two lists of them in any order, differ."""
    if isinstance(one, list) and isinstance(other, list):
        return set(one) != set(other)
    return bool(one != other)
