"""Filesystems that are not local: what pyarrow opens (S3, Google Cloud Storage), and what fsspec does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow.fs as pafs

_QUERY: Final = re.compile(r"\?(region|scheme|endpoint_override|access_key|secret_key|retry_limit_seconds)=[^/]*$")
_GOOGLE_RETRY_S: Final = 10  # our own tries come on top; pyarrow takes 15 minutes for one, without a word
_GOOGLE: Final = frozenset({"gs", "gcs"})
_NO_END: Final = datetime(2200, 1, 1, tzinfo=UTC)


def open_remote(uri: str, scheme: str, options: dict[str, Any]) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of `uri`, opened with `options`, and the path there.

    Raises
    ------
    OSError, ImportError, TypeError, ValueError
        If it cannot be opened, or the options are not its own. Messages may hold credentials.
    """
    path = uri.partition("://")[2]
    if scheme == "s3" and options:
        return pafs.S3FileSystem(**options), path
    if scheme in _GOOGLE and options:
        return pafs.GcsFileSystem(**_google_options(options)), path
    if scheme in {"s3", *_GOOGLE}:
        if _QUERY.search(path):
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return filesystem, str(path)
        bucket, slash, key = path.partition(
            "/"
        )  # a key may hold what means something else in a URI: '#', '?', '%', ' '
        patience = f"/?retry_limit_seconds={_GOOGLE_RETRY_S}" if scheme in _GOOGLE else ""
        filesystem, bucket = pafs.FileSystem.from_uri(f"{scheme}://{bucket}{patience}")
        return filesystem, f"{bucket}{slash}{key}"
    import fsspec

    opened = fsspec.filesystem(scheme, **options)
    return pafs.PyFileSystem(pafs.FSSpecHandler(opened)), str(opened._strip_protocol(uri))


def _google_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``GcsFileSystem``, of which JSON cannot hold all: a date is ISO text, a time seconds."""
    made = {"retry_time_limit": _GOOGLE_RETRY_S, **options}
    made["retry_time_limit"] = timedelta(seconds=float(made["retry_time_limit"]))
    if "access_token" in made:
        ends = made.get("credential_token_expiration")
        made["credential_token_expiration"] = datetime.fromisoformat(ends) if isinstance(ends, str) else ends or _NO_END
    return made
