"""What CSV and JSON lines share: they are read from end to end once, and then by stretches between known positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from skllm_ray.batch.storage import Folder
from skllm_ray.batch.units import InputFile, Unit

BOM: Final = b"\xef\xbb\xbf"
"""What some programs put before UTF-8."""
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff")
SCAN_BYTES: Final = 8 << 20
"""How much of a file is fetched at once."""


def text_start(folder: Folder, file: InputFile) -> int:
    """Return the byte at which a file's text begins: behind the mark of UTF-8, if there is one.

    Raises
    ------
    ValueError
        If the text is UTF-16.
    """
    with folder.filesystem.open_input_stream(file.path, compression=None) as stream:
        head = bytes(stream.read(len(BOM)))
    if head.startswith(_WIDE):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return len(BOM) if head == BOM else 0


def chunks(folder: Folder, file: InputFile, start: int) -> Iterator[bytes]:
    """Yield a file's bytes from `start` on."""
    with folder.filesystem.open_input_stream(file.path, compression=None) as stream:
        stream.read(start)
        while chunk := stream.read(SCAN_BYTES):
            yield bytes(chunk)


def indexed(file: InputFile, index: list[int], n_rows: int) -> InputFile:
    """Return a file whose rows were found; `index` has the byte before every 1,024th."""
    return replace(file, index=tuple(index), n_rows=n_rows, n_bytes=file.size)


def stretch(folder: Folder, unit: Unit) -> bytes:
    """Return what stands between the known positions around a unit."""
    first, last, _ = unit.span
    with folder.filesystem.open_input_file(unit.path) as source:
        source.seek(first)
        return bytes(source.read(last - first))
