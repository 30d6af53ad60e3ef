"""Kinds of Arrow types, whatever way values are stored."""

from __future__ import annotations

import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Return whether values are lists; maps are none."""
    checks = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(check(kind) for check in (*checks, pa.types.is_list_view, pa.types.is_large_list_view))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes."""
    checks = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
    return any(check(kind) for check in checks)


def inner_fields(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields inside a nested type: a list's values, a struct's fields, a map's keys and values."""
    if pa.types.is_map(kind):
        return [kind.key_field, kind.item_field]
    if pa.types.is_struct(kind):
        return list(kind)
    return [kind.value_field] if is_list(kind) else []
