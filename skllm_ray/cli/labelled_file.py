"""Columns of a labelled file that fits in memory, such as examples and training data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from skllm_ray.errors import ConfigurationError


def read_columns(path: str, columns: Mapping[str, str], parameter: str) -> list[list[Any]]:
    """Return some columns of a CSV, JSON lines or Parquet file that fits in memory, none of their values missing.

    CSV holds texts, as a job's input does: what looks like a number, a date or a missing value is what it says.

    Parameters
    ----------
    path : str
        The file.
    columns : mapping of str to str
        The columns' names, by the parameter that gave them.
    parameter : str
        What gave the file, for messages.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or lacks a column or one of its values.
    """
    read = _READERS.get(Path(path).suffix.lower())
    if read is None:
        raise ConfigurationError(f"{parameter}={path!r} is of no known kind.", f"Known: {', '.join(_READERS)}.")
    try:
        table = read(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{parameter}={path!r} cannot be read: {why_unreadable(error)}.") from None
    for option, name in columns.items():
        if name not in table:
            known = ", ".join(map(str, table.columns))
            raise ConfigurationError(f"{parameter}={path!r} has no column {name!r} ({option}).", f"Columns: {known}.")
        empty = table[name].isna() | (table[name].astype(str).str.strip() == "")
        if empty.any():
            raise ConfigurationError(f"{parameter}={path!r}: {name!r} is empty in row {int(empty.argmax()) + 1}.")
    return [table[name].tolist() for name in columns.values()]


def why_unreadable(error: Exception) -> str:
    """Return why a file cannot be read, without a word of what stands in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return type(error).__name__


def _json_lines(path: str) -> pd.DataFrame:
    lines = Path(path).read_text("utf-8-sig").split("\n")  # pandas would guess at dates
    return pd.DataFrame([json.loads(line) for line in lines if line.strip()])


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    ".parquet": pd.read_parquet,
    ".csv": partial(pd.read_csv, dtype=str, keep_default_na=False, encoding="utf-8-sig"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
