"""Columns that a file's place tells: folders such as ``country=DE/``, and the file's own name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_WHOLE: Final = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)


def folder_values(path: str) -> dict[str, str | None]:
    """Return what the folders above a file say of its rows, by column.

    Raises
    ------
    ValueError
        If two folders tell of one column.

    Examples
    --------
    >>> folder_values("bucket/in/country=DE/city=K%C3%B6ln/a.parquet")
    {'country': 'DE', 'city': 'Köln'}
    """
    found: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        name, sign, text = part.partition("=")
        if not (name and sign):
            continue
        name = unquote(name)
        if name in found:
            raise ValueError(f"two of its folders tell of a column {name!r}")
        found[name] = None if text == _NULL else unquote(text)
    return found


def folder_array(text: str | None, n_rows: int) -> pa.Array:
    """Return a column of what a folder says: a whole number where it is written as one, else the text as it stands.

    Examples
    --------
    >>> [folder_array(text, 1)[0].as_py() for text in ("2026", "01", "DE", None)]
    [2026, '01', 'DE', None]
    """
    if text is None:
        return pa.nulls(n_rows)
    return pa.repeat(int(text) if _WHOLE.fullmatch(text) else text, n_rows)


def check_folder(name: str, text: str | None, chunks: Iterator[pa.Array]) -> None:
    """Raise unless a file's own column holds throughout what its folder says.

    Raises
    ------
    ValueError
        Naming a value that differs.
    """
    for chunk in chunks:
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()  # noqa: PLW2901  the same values
        try:
            same = chunk.is_null() if text is None else pc.equal(chunk, pa.scalar(text).cast(chunk.type))
        except (ValueError, pa.ArrowException):
            same = pa.repeat(False, len(chunk))
        differs = chunk.filter(pc.invert(pc.fill_null(same, False)))
        if len(differs):
            held = str(differs[0].as_py())[:80]
            raise ValueError(f"its folder says {name}={text or _NULL}, but its column {name!r} holds {held!r}")
