"""What CSV and JSON lines share: they are read from end to end once, and then by stretches between known positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from skllm_ray.batch.input.slices import InputFile, Unit
from skllm_ray.batch.storage import Folder

BOM: Final = b"\xef\xbb\xbf"
"""What some programs put before UTF-8."""
SCAN_BYTES: Final = 8 << 20
"""How much of a file is fetched at once."""
MOST_BYTES: Final = 64 << 20
"""The longest line, and the longest field: what is longer is a mistake, such as a quote that is never closed."""
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff")
_HEAD: Final = 4096
_STRAY: Final = 2


def text_start(folder: Folder, file: InputFile) -> int:
    """Return the byte at which a file's text begins: behind the mark of UTF-8, if there is one.

    Raises
    ------
    ValueError
        If the text is UTF-16 or compressed.
    """
    with folder.filesystem.open_input_stream(file.path, compression=None) as stream:
        head = bytes(stream.read(_HEAD))
    if head.startswith(_WIDE) or head.count(0) * 4 > len(head):
        raise ValueError("it is UTF-16; save it as UTF-8")
    packed = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
    if packed:
        raise ValueError(f"it is compressed ({packed}); unpack it first, so that its rows can be read from any place")
    return len(BOM) if head.startswith(BOM) else 0


_PACKED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"PK\x03\x04": "zip"}


class Utf8Check:
    """Counts lines that are UTF-8, and lines that are not.

    A few broken characters cost themselves alone; a file in another encoding is refused.
    """

    def __init__(self) -> None:
        self._good = self._bad = self._lines = 0
        self._first: tuple[int, bytes] | None = None

    def line(self, line: bytes | str) -> None:
        """Look at a line; a text has a letter for each byte."""
        self._lines += 1
        if line.isascii():
            return
        if isinstance(line, str):
            line = line.encode("latin-1")
        try:
            line.decode()
            self._good += 1
        except UnicodeDecodeError as error:
            self._bad += 1
            self._first = self._first or (self._lines, line[error.start : error.start + 1])

    def check(self) -> None:
        """Raise if the file is in another encoding.

        Raises
        ------
        ValueError
            Naming the first line, and what to do.
        """
        if self._first is not None and self._bad > max(_STRAY, self._good, self._lines // 100):
            number, byte = self._first
            raise ValueError(
                f"it is no UTF-8: {self._bad:,} of {self._lines:,} lines hold other bytes, line {number:,} the byte "
                f"0x{byte.hex()}; save it as UTF-8, such as by iconv -f WINDOWS-1252 -t UTF-8"
            )


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
