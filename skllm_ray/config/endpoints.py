"""Settings: credentials, and where models and stores are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from skllm_ray.config.checks import _fault_in, _from_environment, _refuse, checked_key, checked_org, checked_url
from skllm_ray.config.process_state import OPENAI_KEY_ENV, current, optional, read, write
from skllm_ray.config.secret import Secret, _text
from skllm_ray.errors import ConfigurationError

_OWN_HEADERS = {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding"}


def _address(url: str | None) -> Secret | None:
    """Return an address so that no frame shows it: it may hold a password by mistake."""
    return None if url is None else Secret(url)


class EndpointSettings:
    """The part of `SKLLMConfig` that says whom to ask, and with which credential."""

    @staticmethod
    def set_openai_key(key: str) -> None:
        """Set the OpenAI (or Azure, or custom URL) API key.

        Raises
        ------
        ConfigurationError
            If it is empty, or holds what no key can: a line break or other white space, or a character beyond ASCII.
        """
        key = Secret(_text("key", key))  # so that no frame that raises holds its text
        write("openai_key", checked_key("key", key))

    @staticmethod
    def reset_openai_key() -> None:
        """Forget the key that was set here; one in the environment counts as before."""
        write("openai_key", None)

    @staticmethod
    def get_openai_key(*, include_standard_env: bool = True) -> Secret | None:
        """Return the API key, or None. It prints as stars; ``.reveal()`` gives the text.

        Parameters
        ----------
        include_standard_env : bool, default=True
            Whether ``OPENAI_API_KEY`` counts where neither the setting nor ``SKLLM_CONFIG_OPENAI_KEY`` is there.
        """
        names = OPENAI_KEY_ENV if include_standard_env else OPENAI_KEY_ENV[:1]
        value = current().openai_key or next(filter(None, map(_from_environment, names)), None)
        return Secret(value) if value else None

    @staticmethod
    def set_secret_resolver(function: str | None) -> None:
        """Set the function that workers ask for a credential, so that it never passes through the driver.

        Parameters
        ----------
        function : str or None
            ``package.module:function``, importable on every worker. It is called with the credential's name, such as
            ``"openai_key"``, and returns it as a str, or None where it has none. It is asked after this process's
            settings and before the environment.
        """
        if function is not None and not re.fullmatch(r"[\w.]+:\w+", _text("secret_resolver", function)):
            raise ConfigurationError(
                "secret_resolver must be written package.module:function, and what was given is not.",
                "For example my_company.vault:get_secret.",
            )
        write("secret_resolver", function)

    @staticmethod
    def get_secret_resolver() -> str | None:
        """Return the function that workers ask for a credential, or None."""
        return optional("secret_resolver")

    @staticmethod
    def set_openai_org(key: str) -> None:
        """Set the OpenAI organisation ID."""
        write("openai_org", checked_org(key))

    @staticmethod
    def get_openai_org() -> str | None:
        """Return the OpenAI organisation ID, or None."""
        return optional("openai_org")

    set_gpt_key = set_openai_key
    get_gpt_key = get_openai_key
    set_gpt_org = set_openai_org
    get_gpt_org = get_openai_org

    @staticmethod
    def set_azure_api_base(base: str) -> None:
        """Set the Azure OpenAI endpoint, such as ``https://NAME.openai.azure.com``."""
        base = Secret(_text("azure_api_base", base))  # it may hold a password by mistake
        write("azure_api_base", checked_url("azure_api_base", base))

    @staticmethod
    def get_azure_api_base() -> str | None:
        """Return the Azure OpenAI endpoint, or None."""
        url = _address(optional("azure_api_base"))
        return None if url is None else checked_url("azure_api_base", url)

    @staticmethod
    def set_azure_api_version(ver: str) -> None:
        """Set the Azure OpenAI API version, such as ``2024-10-21``."""
        write("azure_api_version", _text("azure_api_version", ver))

    @staticmethod
    def get_azure_api_version() -> str:
        """Return the Azure OpenAI API version."""
        return str(read("azure_api_version"))

    @staticmethod
    def set_google_project(project: str) -> None:
        """Set the Google Cloud project ID for Vertex AI."""
        write("google_project", _text("google_project", project))

    @staticmethod
    def get_google_project() -> str | None:
        """Return the Google Cloud project ID, or None."""
        return optional("google_project")

    @staticmethod
    def set_google_location(location: str) -> None:
        """Set the Vertex AI location, such as ``europe-west4``; ``global`` is the default."""
        write("google_location", _text("google_location", location))

    @staticmethod
    def get_google_location() -> str:
        """Return the Vertex AI location."""
        return str(read("google_location"))

    @staticmethod
    def set_google_bucket(bucket: str) -> None:
        """Set the Cloud Storage bucket for data sets that Vertex AI tunes on."""
        write("google_bucket", _text("google_bucket", bucket))

    @staticmethod
    def get_google_bucket() -> str | None:
        """Return the Cloud Storage bucket for data sets, or None."""
        return optional("google_bucket")

    @staticmethod
    def set_tuning_store(url: str | os.PathLike[str]) -> None:
        """Set where tuning jobs are kept: a folder, ``gs://BUCKET/FOLDER`` or an fsspec URL."""
        write("tuning_store", _text("tuning_store", os.fspath(url)))

    @staticmethod
    def get_tuning_store() -> str:
        """Return where tuning jobs are kept; ``~/.skllm/tuning`` by default."""
        return str(read("tuning_store"))

    @staticmethod
    def set_gpt_url(url: str) -> None:
        """Set the base URL that ``model="custom_url::…"`` uses, such as ``http://localhost:11434/v1``."""
        url = Secret(_text("gpt_url", url))  # it may hold a password by mistake
        write("gpt_url", checked_url("gpt_url", url))

    @staticmethod
    def get_gpt_url() -> str | None:
        """Return the custom base URL, or None."""
        url = _address(optional("gpt_url"))
        return None if url is None else checked_url("gpt_url", url)

    @staticmethod
    def get_openai_base_url() -> str | None:
        """Return what ``OPENAI_BASE_URL`` says, or None: where models without a namespace are asked then."""
        url = _address(os.environ.get("OPENAI_BASE_URL"))
        return checked_url("OPENAI_BASE_URL", url) if url else None

    @staticmethod
    def set_extra_headers(headers: Mapping[str, str] | None) -> None:
        """Set HTTP headers that every request of the GPT family carries: what a gateway asks for.

        They are sent to OpenAI, Azure OpenAI and custom URLs alike. Their values are kept as keys are: nothing shows
        them, and no file and no pickle holds them. For fields of a request's body there is
        ``request_options={"extra_body": {…}}``.

        Parameters
        ----------
        headers : mapping of str to str, or None
            The headers, in place of all that were set before; None is none.

        Raises
        ------
        ConfigurationError
            If a name or a value is no header, or the client needs it for itself.

        Examples
        --------
        >>> from skllm_ray.config import SKLLMConfig
        >>> SKLLMConfig.set_extra_headers({"x-portkey-api-key": "pk-1234"})
        >>> SKLLMConfig.get_extra_headers()
        {'x-portkey-api-key': Secret(***)}
        >>> SKLLMConfig.set_extra_headers(None)
        """
        headers = {name: _hidden(value) for name, value in (headers or {}).items()}
        write("extra_headers", tuple((_header(name), _value(name, value)) for name, value in headers.items()))

    @staticmethod
    def get_extra_headers() -> dict[str, Secret]:
        """Return the HTTP headers that every request of the GPT family carries."""
        return dict(current().extra_headers)

    @staticmethod
    def reset_gpt_url() -> None:
        """Forget the custom base URL."""
        write("gpt_url", None)


def _header(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_|~-]+", name):
        raise ConfigurationError(
            "extra_headers must map names of headers to values, and a name in it is none.",
            "A name is letters, digits and hyphens: {'x-portkey-api-key': '…'}.",
        )
    if name.lower() in _OWN_HEADERS:
        raise ConfigurationError(f"extra_headers may not hold {name!r}: the client writes it itself.")
    return name


def _hidden(value: Any) -> Any:
    return Secret(value) if isinstance(value, str) and value.strip() else value


def _value(name: str, value: object) -> Secret:
    value = Secret(_text(f"extra_headers[{name!r}]", value))
    _refuse(f"extra_headers[{name!r}]", _fault_in(value.reveal(), spaces=True))
    return value
