"""What a setting may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skllm_ray.config.secret import Secret, _text
from skllm_ray.errors import ConfigurationError, MissingKeyError

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def _path(name: str, value: str | os.PathLike[str]) -> str:
    """Return a path that means the same in every process, whatever its folder and its user's home."""
    return str(Path(_text(name, os.fspath(value))).expanduser().absolute())


def checked_key(name: str, value: object) -> Secret:
    """Return a credential, or raise `ConfigurationError`, which shows no part of it, where it can be none.

    Examples
    --------
    >>> checked_key("key", " sk-1234 ")
    Secret(***)
    """
    value = Secret(_text(name, value))
    _refuse(name, _fault_in(value.reveal()))
    return value


def checked_org(value: object) -> str:
    """Return an organisation ID, or raise `ConfigurationError` where no request's head can carry it."""
    text = _text("org", value)
    _refuse("org", _fault_in(text))
    return text


def _fault_in(text: str, *, spaces: bool = False) -> str:
    """Return what `text` holds that neither a request's head nor an address can: more than one line of ASCII."""
    bad = next((sign for sign in text if not ("!" <= sign <= "~" or (spaces and sign == " "))), None)
    if bad is None:
        return ""
    if bad in "\r\n":
        return "a line break"
    if bad.isspace():
        return "white space"
    if bad in "…•":
        return f"{bad!r}, which stands for a part that was not copied"
    return "a control character" if bad < " " or bad == "\x7f" else "a character that is not ASCII"


def _refuse(name: str, fault: str) -> None:
    if fault:
        raise ConfigurationError(f"{name} holds {fault}, which no request can carry.", "Copy it anew, as one line.")


def checked_url(name: str, value: object) -> str:
    """Return a base URL, or raise `ConfigurationError`, which repeats no URL that may hold a credential."""
    value = Secret(_text(name, value))  # so that no frame that raises holds its text
    if _may_hold_secret(value.reveal()):
        raise ConfigurationError(
            f"{name} must be the address alone: no user name, password, query (after ?) or fragment (after #).",
            "A key goes into SKLLMConfig.set_openai_key(…) or key=…, Azure's version into set_azure_api_version(…).",
        )
    text = value.reveal()
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigurationError(
            f"{name} must be a URL that begins with http:// or https://, and what was given does not.",
            "For example http://localhost:11434/v1.",
        )
    _refuse(name, _fault_in(text))
    return text.rstrip("/")


def _may_hold_secret(url: str) -> bool:
    address = urlsplit(url).netloc or url  # an @ in a path is a name
    return "?" in url or "#" in url or "@" in address


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ConfigurationError(f"{name} must be True or False; got {value!r}.")


def _gpu_layers(value: object) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or number < -1:
        raise ConfigurationError(
            f"gguf_max_gpu_layers must be an int of at least -1; got {value!r}.",
            "0: all layers on the CPU, -1: all on the GPU, n > 0: n layers on the GPU.",
        )
    return number


def _at_least(name: str, value: object, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ConfigurationError(f"{name} must be an int of at least {lowest}; got {value!r}.")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigurationError(f"{name} must be a number of at least 0; got {value!r}.")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a number of seconds above 0; got {value!r}.")
    return float(value)


def _from_environment(name: str) -> Secret | None:
    """Return a credential from the variable `name`, or from the file that ``<name>_FILE`` names."""
    if os.environ.get(name):
        return Secret(os.environ[name])
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return None
    try:
        return Secret(Path(path).read_text().strip()) or None
    except (OSError, UnicodeDecodeError) as error:
        raise MissingKeyError(f"{name}_FILE={path} cannot be read: {type(error).__name__}.") from None


def _one_of(name: str, value: object, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value
