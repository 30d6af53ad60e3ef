"""Templates that make a text of several columns: what they may hold, and what stands for an empty column."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from skllm_ray.batch.input.exact import texts
from skllm_ray.batch.input.extensions import extension_of, plain_type, unwrapped
from skllm_ray.batch.input.kinds import is_bytes
from skllm_ray.errors import ConfigurationError

_MOST_WIDTH: Final = 10_000
_MOST_LETTERS: Final = 1_000_000
_MOST_FIELDS: Final = 1000


class _Empty(str):
    """Stands for a column without a value: nothing, in whatever format it is asked for."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return ""

    def __repr__(self) -> str:
        return ""


EMPTY: Final = _Empty()


class _Plain(str):
    """Stands for a time beyond the years that Python knows: written out, in whatever format it is asked for."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return str(self)


def template_fields(template: str) -> frozenset[str]:
    """Return the columns that a template such as ``{title}: {body}`` names.

    Examples
    --------
    >>> sorted(template_fields("{title}: {body}"))
    ['body', 'title']
    """
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def texts_of(table: pa.Table, column: str | None, template: str | None) -> list[Any]:
    """Return rows' texts: a column's, or those of a template; None where all the columns that it takes are empty.

    Examples
    --------
    >>> texts_of(pa.table({"a": ["x", None], "b": [1, None]}), None, "{a}: {b:02}")
    ['x: 01', None]
    """
    if template is None:
        return list(table.column(column or "").to_pylist())
    names = sorted(template_fields(template))
    rows = zip(*(_values(table.column(name), table.schema.field(name)) for name in names), strict=True)
    return [filled(template, dict(zip(names, row, strict=True))) for row in rows]


def filled(template: str, row: Mapping[str, Any]) -> str | None:
    """Return a row's text; None where all the columns that it takes are empty."""
    values = {name: EMPTY if value is None else value for name, value in row.items()}
    return template.format_map(values) if any(str(value).strip() for value in values.values()) else None


def check_template(template: str) -> None:
    """Refuse a template that can make no text, or one that is too large, whatever the columns hold.

    Raises
    ------
    ConfigurationError
        Saying what is wrong with it.

    Examples
    --------
    >>> check_template("{title}: {body} ({price:.2f} EUR)")
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"text_template={template!r} is no template: {error}.", "Write literal braces twice: '{{'."
        ) from None
    names = [name for _, name, _, _ in pieces if name is not None]
    if len(template) > _MOST_LETTERS or len(names) > _MOST_FIELDS:
        raise ConfigurationError(
            f"text_template has {len(template):,} letters and names {len(names):,} columns; at most "
            f"{_MOST_LETTERS:,} and {_MOST_FIELDS:,} are possible.",
        )
    if not names or not all(name.isidentifier() for name in names):
        raise ConfigurationError(
            f"text_template={template!r} must name columns in braces, such as '{{title}}: {{body}}'.",
            "Names with other signs than letters, digits and '_' are not possible there.",
        )
    if any("{" in (spec or "") for _, _, spec, _ in pieces):
        raise ConfigurationError(f"text_template={template!r} has a column within a format.", "Write the format out.")
    for _, name, spec, _ in pieces:
        widths = [int(digits) for digits in re.findall(r"\d+", (spec or "")[:_MOST_WIDTH])]
        if max(widths, default=0) > _MOST_WIDTH or len(spec or "") >= _MOST_WIDTH:
            raise ConfigurationError(
                f"text_template: the format of {name!r} asks for more than {_MOST_WIDTH:,} letters.",
                f"Give a width and a precision of at most {_MOST_WIDTH:,}.",
            )


def check_formats(template: str, schema: pa.Schema) -> None:
    """Refuse a template whose formats do not suit its columns' types, such as ``{price:.2f}`` for a price that is text.

    Raises
    ------
    ConfigurationError
        Naming the column.
    """
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        kind = _plain_kind(schema.field(name))
        if kind is None or is_bytes(kind):
            raise ConfigurationError(
                f"text_template: the column {name!r} is of type {schema.field(name).type}, which has no text.",
                "Convert it to strings.",
            )
        piece = "{0" + (f"!{conversion}" if conversion else "") + f":{spec}}}"
        try:
            for sample in _samples(kind):
                piece.format(sample)
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigurationError(
                f"text_template: the column {name!r} is of type {kind}, which takes no format {spec!r}: {error}.",
                "Leave the format out, or convert the column." + (" CSV has texts alone." if kind == "string" else ""),
            ) from None


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
    """Return a column's values in the form that formats know."""
    if extension_of(field):
        column = pa.chunked_array([unwrapped(chunk, field) for chunk in column.chunks], _plain_kind(field))
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # a time beyond the year 9999
        return [_value(one) for one in column]


def _value(one: pa.Scalar) -> Any:
    try:
        return one.as_py()
    except (ValueError, OverflowError):
        return _Plain(texts(pa.array([one], one.type))[0].as_py())


def _plain_kind(field: pa.Field) -> pa.DataType | None:
    """Return the type of a column's values without an extension; None where they mean nothing without it."""
    try:
        return plain_type(field)
    except ValueError:
        return None


def _samples(kind: pa.DataType) -> tuple[Any, ...]:
    """Return values as rows may have them in a column of this type."""
    if pa.types.is_dictionary(kind):
        return _samples(kind.value_type)
    return next((values for holds, values in _SAMPLES if holds(kind)), ("a",))


_SAMPLES: Final[tuple[tuple[Callable[[pa.DataType], bool], tuple[Any, ...]], ...]] = (
    (pa.types.is_null, (EMPTY,)),
    (pa.types.is_boolean, (True,)),
    (pa.types.is_integer, (1, -(2**63), 2**64 - 1)),
    (pa.types.is_floating, (1.0, math.nan, -math.inf)),
    (pa.types.is_decimal, (Decimal(1), Decimal("-1.5"))),
    (pa.types.is_date, (date(2000, 1, 1), date.min, date.max)),
    (pa.types.is_time, (time(),)),
    (pa.types.is_timestamp, (datetime(2000, 1, 1, tzinfo=UTC),)),
    (pa.types.is_duration, (timedelta(1),)),
    (pa.types.is_struct, ({},)),
    (pa.types.is_nested, ([],)),
)
