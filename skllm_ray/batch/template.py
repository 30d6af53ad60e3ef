"""Templates that make a text of several columns: what they may hold, and what stands for an empty column."""

from __future__ import annotations

import string
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from skllm_ray.errors import ConfigurationError


class _Empty(str):
    """Stands for a column without a value: nothing, in whatever format it is asked for."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return ""

    def __repr__(self) -> str:
        return ""


EMPTY: Final = _Empty()


def check_template(template: str) -> None:
    """Refuse a template that can make no text, whatever the columns hold.

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
    if not names or not all(name.isidentifier() for name in names):
        raise ConfigurationError(
            f"text_template={template!r} must name columns in braces, such as '{{title}}: {{body}}'.",
            "Names with other signs than letters, digits and '_' are not possible there.",
        )
    if any("{" in (spec or "") for _, _, spec, _ in pieces):
        raise ConfigurationError(f"text_template={template!r} has a column within a format.", "Write the format out.")


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
        kind = schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            raise ConfigurationError(
                f"text_template: the column {name!r} is of type {kind}, which has no text.", "Convert it to strings."
            )
        piece = "{0" + (f"!{conversion}" if conversion else "") + f":{spec}}}"
        try:
            piece.format(_sample(kind))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"text_template: the column {name!r} is of type {kind}, which takes no format {spec!r}: {error}.",
                "Leave the format out, or convert the column." + (" CSV has texts alone." if kind == "string" else ""),
            ) from None


def _sample(kind: pa.DataType) -> Any:
    """Return a value as rows have them in a column of this type."""
    if pa.types.is_dictionary(kind):
        return _sample(kind.value_type)
    return next((value for holds, value in _SAMPLES if holds(kind)), "a")


_SAMPLES: Final[tuple[tuple[Callable[[pa.DataType], bool], Any], ...]] = (
    (pa.types.is_null, EMPTY),
    (pa.types.is_boolean, True),
    (pa.types.is_integer, 1),
    (pa.types.is_floating, 1.0),
    (pa.types.is_decimal, Decimal(1)),
    (pa.types.is_date, datetime(2000, 1, 1, tzinfo=UTC).date()),
    (pa.types.is_time, time()),
    (pa.types.is_timestamp, datetime(2000, 1, 1, tzinfo=UTC)),
    (pa.types.is_duration, timedelta(1)),
    (pa.types.is_struct, {}),
    (pa.types.is_nested, []),
)
