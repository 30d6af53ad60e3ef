"""From a reference to the credential that it names."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping

from skllm_ray.config.checks import _from_environment
from skllm_ray.config.process_state import current, optional
from skllm_ray.config.secret import Secret
from skllm_ray.config.values import SecretRef
from skllm_ray.errors import MissingKeyError

_logger = logging.getLogger(__name__)


def resolve_secret(ref: SecretRef, held: Mapping[str, Secret] | None = None) -> Secret:
    """Return the credential that `ref` names.

    Parameters
    ----------
    ref : SecretRef
        The reference.
    held : mapping of str to Secret, optional
        Credentials by fingerprint, such as those that the driver handed over.

    Raises
    ------
    MissingKeyError
        If neither `held`, this process's settings nor the environment has it.
    """
    if held and ref.fingerprint in held:
        return Secret(held[ref.fingerprint])
    found = _find_secret(ref)
    if found:
        if ref.fingerprint and found.fingerprint != ref.fingerprint:
            _logger.warning("%s is another one here than the driver named; it is used.", ref.name)
        return found
    setter = f"SKLLMConfig.set_{ref.name}(…)"
    raise MissingKeyError(
        f"No {ref.name} was found.",
        f"Call {setter}, or set {' or '.join(ref.env)}, or {ref.env[0]}_FILE with a file's path, in the environment.",
    )


def _find_secret(ref: SecretRef) -> Secret | None:
    own = current().openai_key if ref.name == "openai_key" else None
    if own:
        return own
    resolver = ref.resolver or optional("secret_resolver")
    told = _ask_resolver(resolver, ref.name) if resolver else None
    return told or next(filter(None, map(_from_environment, ref.env)), None)


def _ask_resolver(function: str, name: str) -> Secret | None:
    module, _, attribute = function.partition(":")
    told, failure = None, ""
    try:
        told = getattr(importlib.import_module(module), attribute)(name)
        told = Secret(told) if isinstance(told, str) else told
    except Exception as error:  # noqa: BLE001  the user's code; what it says, and its frames, may hold the secret
        failure = type(error).__name__
    if failure:
        raise MissingKeyError(
            f"The secret_resolver {function} failed for {name}: {failure}.", "It must be importable on every worker."
        )
    if told is not None and not isinstance(told, Secret):
        raise MissingKeyError(f"The secret_resolver {function} gave a {type(told).__name__} for {name}, not a str.")
    return told
