"""Answers with bounds: how much of a body is read, and what it is, whatever a server sends."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.llm.api.server_message import is_bare_failure

CHAT_BYTES: Final = 8_000_000
"""The largest answer of a chat: 200,000 tokens, each character of them escaped."""
_MOST_OF_AN_ERROR: Final = 65_536
_BYTES_OF_A_VECTOR: Final = 262_144  # 10,000 numbers, written out
_WINDOW: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # what zlib calls the two forms

most_bytes: ContextVar[int] = ContextVar("skllm_ray_most_bytes", default=CHAT_BYTES)
"""The largest answer that the request of this task may get, in bytes, unpacked."""

latest_body: ContextVar[bytes] = ContextVar("skllm_ray_latest_body", default=b"")
"""The latest answer to this task, for those whose SDK keeps it to itself."""


class UnreadableError(Exception):
    """An answer is nothing that can be read: a page, nothing at all, or without end.

    Parameters
    ----------
    message : str
        What it is, in words that hold nothing of the answer.
    again : bool, default=True
        Whether asking again may help.
    """

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """Case does not matter."""
    content: bytes
    """Unpacked; of an error the beginning."""


class StatusError(Exception):
    """An answer has another status than 2xx.

    Parameters
    ----------
    answer : HttpAnswer
        The answer.
    """

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def bytes_of_vectors(n_texts: int) -> int:
    """Return the largest answer that holds the vectors of so many texts, or a vector of each token of a few."""
    return CHAT_BYTES + n_texts * _BYTES_OF_A_VECTOR


def client(timeout: Any) -> Any:
    """Return OpenAI's aiohttp client, for an SDK that takes one; it reads no more of an answer than it may.

    Its transport takes a third of the CPU time of httpx's default one. Without an SDK, see :mod:`.http_client`.
    """
    import openai

    hooks = {"response": [_read_bounded]}
    return openai.DefaultAioHttpClient(timeout=timeout, event_hooks=hooks, headers={"accept-encoding": "gzip, deflate"})


def parsed(content: bytes | str) -> Any:
    """Return the JSON in an answer; a failure that is told in a few words stands as a str.

    Raises
    ------
    UnreadableError
        If it is none, or nested so deeply that nobody can read it.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise UnreadableError("The answer is JSON that is nested too deeply.", again=False) from None
    except (ValueError, UnicodeDecodeError):
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        if is_bare_failure(text.strip()):
            return text.strip()
        raise UnreadableError(f"The answer is {_described(content)}.") from None


def _described(content: bytes | str) -> str:
    head = content[:512] if isinstance(content, str) else content[:512].decode("utf-8", "replace")
    begins = head.lstrip().casefold()
    if not begins:
        return "empty"
    if begins.startswith(("<!doctype", "<html", "<head", "<body", "<?xml")):
        return "a web page and not JSON"
    if begins.startswith(("data:", "event:", ": ")):
        return "a stream of events and not JSON"
    return "not JSON, or cut off" if begins[0] in "{[" else "not JSON"


async def _read_bounded(response: Any) -> None:
    """Read the answer, before the SDK does: of an error its beginning, of an answer all, if it is not too much."""
    body = Body(response.headers.pop("content-encoding", ""), is_error=response.status_code >= 400)
    async for chunk in response.stream:
        if not body.take(chunk):
            break
    await response.stream.aclose()
    content = body.whole()
    latest_body.set(content)
    response.stream = _http().ByteStream(content)


class Body:
    """An answer as it comes in, unpacked no further than it may be: of an error its beginning, else all.

    Parameters
    ----------
    encoding : str
        What the answer says of how it is packed.
    is_error : bool
        Whether its status says that it is an error.
    """

    def __init__(self, encoding: str, *, is_error: bool) -> None:
        self._content = bytearray()
        self._is_too_large = False
        self._is_error = is_error
        self._most = _MOST_OF_AN_ERROR if is_error else most_bytes.get()
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", *_WINDOW}:
            raise UnreadableError("The answer is packed in a way that nobody asked for.", again=False)
        self._window = _WINDOW.get(encoding)
        self._unpacks = self._window and zlib.decompressobj(self._window)

    def take(self, chunk: bytes) -> bool:
        """Take a chunk; return whether more may come."""
        try:
            self._content += chunk if not self._unpacks else self._unpacked(chunk)
        except zlib.error:
            raise UnreadableError("The answer is packed, and cannot be unpacked.") from None
        self._is_too_large = len(self._content) > self._most
        del self._content[self._most + 1 :]
        return not self._is_too_large

    def whole(self) -> bytes:
        """Return what was taken.

        Raises
        ------
        UnreadableError
            If it is too much.
        """
        if self._is_too_large and not self._is_error:
            raise UnreadableError(f"The answer is larger than {self._most:,} bytes.", again=False)
        return bytes(self._content)

    def _unpacked(self, chunk: bytes) -> bytes:
        assert self._unpacks and self._window  # noqa: S101  for the type checker
        found = self._unpacks.decompress(chunk, self._most + 1 - len(self._content))
        while self._unpacks.eof and self._unpacks.unused_data:  # gzip may have several parts
            rest = self._unpacks.unused_data
            self._unpacks = zlib.decompressobj(self._window)
            found += self._unpacks.decompress(rest, max(1, self._most + 1 - len(self._content) - len(found)))
        return found


def _http() -> Any:
    import openai

    known = next(base for base in openai.DefaultAsyncHttpxClient.__mro__ if base.__name__ == "AsyncClient")
    return sys.modules[known.__module__.partition(".")[0]]
