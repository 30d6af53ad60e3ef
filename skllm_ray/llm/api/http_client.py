"""Posts JSON to a server, and reads no more of an answer than it may. No SDK here.

An SDK and its transport take most of a request's CPU time: they build models of options, headers and answers anew for
each request. Here, a backend's headers are built once, and its proxy and authorities are looked up once.
"""

from __future__ import annotations

import io
import json
import os
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import certifi
from multidict import CIMultiDict
from yarl import URL

from skllm_ray.config import Secret
from skllm_ray.llm.api.response_body import Body, HttpAnswer, StatusError

_MOST_REDIRECTS: Final = 5
_SAME_AGAIN: Final = {307, 308}  # the other redirects turn a POST into a GET
_KEPT_S: Final = 4.0  # some servers close a connection that idles for five seconds
_LARGE: Final = 1 << 20  # aiohttp wants such bodies as files


class SentHeaders:
    """The headers of every request, keys among them: no repr, and so no traceback, shows them.

    Empty ones are not sent.
    """

    __slots__ = ("_held",)

    def __init__(self, held: Mapping[str, str]) -> None:
        self._held = CIMultiDict({name: value for name, value in held.items() if value})

    def add(self, name: str, value: Secret, scheme: str = "") -> None:
        """Set a header to `scheme` and a secret. No local variable holds its text, which other threads could see."""
        self._held[name] = scheme + value.reveal()

    def reveal(self) -> CIMultiDict[str]:
        """Return them."""
        return self._held


class HttpClient:
    """Connections to one server. All but the constructor runs on one event loop.

    It goes by the proxies and the certificate authorities that the environment names (``HTTPS_PROXY``, ``NO_PROXY``,
    ``SSL_CERT_FILE`` …), as httpx does. It follows no redirect to another host, which must not see the headers.

    Parameters
    ----------
    timeout_s : float
        The longest that the server may be silent.
    connect_s : float, default=10.0
        The longest that connecting may take.
    """

    def __init__(self, timeout_s: float, connect_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None
        self._ways: dict[str, dict[str, Any]] = {}

    async def post(self, url: str, body: object, headers: SentHeaders) -> HttpAnswer:
        """Post `body` as JSON, and return the answer.

        Raises
        ------
        StatusError
            If its status is none of success.
        UnreadableError
            If it is larger than `response_body.most_bytes`, or packed in a way that nobody asked for.
        aiohttp.ClientError, OSError, TimeoutError
            If there is none.
        """
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        session, to = self._session or self._open(), URL(url)
        left = _MOST_REDIRECTS
        while True:
            data = content if len(content) < _LARGE else io.BytesIO(content)
            way = self._ways[to.scheme] if to.scheme in self._ways else self._way_to(to)
            async with session.post(to, data=data, headers=headers.reveal(), allow_redirects=False, **way) as response:
                onward = _onward(response, to) if response.status in _SAME_AGAIN and left else None
                if onward is None:
                    return await _read(response)
            to, left = onward, left - 1

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=self._timeout_s),
            auto_decompress=False,
        )
        return self._session

    def _way_to(self, to: URL) -> dict[str, Any]:
        """Return what is needed to reach a host: a proxy, where the environment names one, and whom to trust."""
        how: dict[str, Any] = {"ssl": _trusted()} if to.scheme == "https" else {}
        proxies = urllib.request.getproxies()
        named = proxies.get(to.scheme) or proxies.get("all")
        if named and not urllib.request.proxy_bypass(to.host or ""):
            how["proxy"] = URL(named if "://" in named else f"http://{named}")
        self._ways[to.scheme] = how
        return how


def _onward(response: aiohttp.ClientResponse, to: URL) -> URL | None:
    """Return where a redirect leads, if that may see the headers."""
    onward = to.join(URL(response.headers.get("location", "")))
    is_safer = onward.host == to.host and onward.scheme == "https"
    return onward if is_safer or onward.origin() == to.origin() else None


async def _read(response: aiohttp.ClientResponse) -> HttpAnswer:
    is_error = not 200 <= response.status < 300
    body = Body(response.headers.get("content-encoding", ""), is_error=is_error)
    async for chunk in response.content.iter_any():
        if not body.take(chunk):
            break
    found = HttpAnswer(response.status, response.headers, body.whole())
    if is_error:
        raise StatusError(found)
    return found


def _trusted() -> ssl.SSLContext:
    """Return whom to trust: the authorities of the system and of certifi, or those that the environment names."""
    context = ssl.create_default_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        context.load_verify_locations(certifi.where())
    return context
