"""What clients upload: the parts of a form, and a file's checksum."""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any


def multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the content of a ``multipart/related`` upload."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').strip("'").encode()
    _, meta, content, _ = body.split(boundary, 3)
    found: dict[str, Any] = json.loads(meta.partition(b"\r\n\r\n")[2])
    return found, content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


def form_file(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Return the name and the content of the file in a ``multipart/form-data`` upload."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'filename="([^"]*)"', head)
        if name:
            return name[1].decode(), content.removesuffix(b"\r\n")
    return "", b""


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def crc32c(content: bytes) -> str:
    """Return the CRC32C of `content` as Cloud Storage writes it."""
    value = 0xFFFFFFFF
    for byte in content:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return base64.b64encode(struct.pack(">I", value ^ 0xFFFFFFFF)).decode()
