"""What a unit's summary tells of the rows in its part."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_REASON: Final = 500
"""Characters of a reason that are kept."""


def counts_of(table: pa.Table, prefix: str, *, labelled: bool) -> dict[str, Any]:
    """Return the fields of a unit's summary that tell of its rows.

    Parameters
    ----------
    table : pyarrow.Table
        A part.
    prefix : str
        What stands before the names of our columns.
    labelled : bool
        Whether its answers are labels.
    """
    told = {"rows": table.num_rows, "errors": _errors(table, prefix), "reasons": _reasons(table, prefix)}
    return told | (_labels(table, prefix) if labelled else {}) | _stages(table, prefix)


# --- inside -------------------------------------------------------------------------------------------------------


def _errors(table: pa.Table, prefix: str) -> dict[str, int]:
    kinds = pc.value_counts(table.column(f"{prefix}error_kind").drop_null()).to_pylist()
    return {one["values"]: one["counts"] for one in kinds}


def _reasons(table: pa.Table, prefix: str) -> dict[str, str]:
    """Return the first reason of each kind of failure."""
    kinds, reasons = table.column(f"{prefix}error_kind"), table.column(f"{prefix}error")
    if kinds.null_count == len(kinds):
        return {}
    found = {}
    for kind in pc.unique(kinds.drop_null()).to_pylist():
        place = pc.index(kinds, kind).as_py()
        found[kind] = str(reasons[place].as_py() or "")[:_REASON]
    return found


def _labels(table: pa.Table, prefix: str) -> dict[str, Any]:
    """Return the commonest label and its rows; nothing where a row has no one label."""
    labels = table.column(f"{prefix}prediction").filter(pc.fill_null(table.column(f"{prefix}valid"), False))
    if pa.types.is_list(labels.type) or not len(labels):
        return {}
    counts = pc.value_counts(labels.cast(pa.string()).combine_chunks())
    top = counts[pc.index(counts.field("counts"), pc.max(counts.field("counts"))).as_py()].as_py()
    return {"label": top["values"], "label_rows": top["counts"]}


def _stages(table: pa.Table, prefix: str) -> dict[str, Any]:
    """Return what the rows of a cascade were answered by, and how many audited labels differ."""
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
