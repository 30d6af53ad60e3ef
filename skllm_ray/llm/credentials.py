"""The credentials of a call: which there are, and how a spec names one without holding it."""

from __future__ import annotations

from collections.abc import Sequence

from skllm_ray.config import Secret, SecretRef, SKLLMConfig, checked_key
from skllm_ray.errors import warn
from skllm_ray.llm.base import BackendSpec


def key_reference(name: str, env: Sequence[str], key: str | None, of_settings: Secret | None = None) -> SecretRef:
    """Return what names the key of a call, for a worker to find it by.

    Parameters
    ----------
    name : str
        What messages call it, such as ``openai_key``.
    env : sequence of str
        The environment variables in which a worker looks for it.
    key : str or None
        The estimator's own; it wins.
    of_settings : Secret or None, default=None
        The one that is set in this process.
    """
    own = Secret(key) if key else of_settings
    # What was left behind in a pickle has no text here, but the driver or a worker may know it.
    own = checked_key("the API key", own) if own else left_behind(key)
    return SecretRef(name, tuple(env), "" if own is None else own.fingerprint, SKLLMConfig.get_secret_resolver() or "")


def secrets_of(key: str | None) -> dict[str, Secret]:
    """Return the credentials that this process can hand to workers, by fingerprint."""
    found = [Secret(key) if key else None, SKLLMConfig.get_openai_key(), *SKLLMConfig.get_extra_headers().values()]
    return {secret.fingerprint: secret for secret in found if secret}


def left_behind(key: str | None) -> Secret | None:
    """Return the credential that an estimator, or its settings, came with, if its text stayed behind in a pickle."""
    carried = key if key is not None else SKLLMConfig._settings.openai_key
    return carried if isinstance(carried, Secret) and not carried else None


def warn_of_another_key(spec: BackendSpec, lost: Secret | None) -> None:
    """Say that another credential than the one that was left behind is used: it may be another account's."""
    reference = spec.credential
    if lost is not None and reference is not None and reference.fingerprint not in {"", lost.fingerprint}:
        warn(
            "The API key that this estimator came with is not known here, since no key travels with an estimator. The "
            "one that is configured here is used, and it is another one; set_params(key=…) says which to use."
        )
