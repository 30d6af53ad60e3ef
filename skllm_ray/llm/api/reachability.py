"""Whether a server answers at an address, and takes a key: one request for its list of models, which costs nothing."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from typing import Final

from skllm_ray.config.secret import Secret

_TIMEOUT_S: Final = 5.0


def fault_at(url: str, key: Secret | None = None) -> str:
    """Return why the server at `url` cannot be used with `key`; empty where it can.

    Parameters
    ----------
    url : str
        The address of an OpenAI-compatible API, such as ``https://api.openai.com/v1``.
    key : Secret or None, default=None
        Sent as the bearer. Without one, a server that asks for a key counts as reachable.
    """
    request = urllib.request.Request(url.rstrip("/") + "/models")  # noqa: S310  settings take http and https alone
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key.reveal()}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        status = error.code
    except urllib.error.URLError as error:
        return _connection_fault(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _connection_fault(error)
    if status in {401, 403}:
        return "" if key is None else f"it answers {status}: the key is refused"
    return f"it answers {status}" if status >= 500 else ""  # what has no list of models is a server all the same


def _connection_fault(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer within {_TIMEOUT_S:g} s"
    if isinstance(reason, socket.gaierror):
        return "its name cannot be looked up"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return f"{type(reason).__name__}: {reason}"
