"""The files of an OpenAI-compatible server, and the plain client that tuning jobs and batches use for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol

from skllm_ray.config import Secret, SecretRef
from skllm_ray.errors import JobFailedError, MissingKeyError
from skllm_ray.llm.api.failures import Redact, failure, is_timeout, lost, root, row_error, told_by, unexpected
from skllm_ray.llm.base import SecretResolver
from skllm_ray.tasks.base import RowError

if TYPE_CHECKING:
    import openai
    from openai.types import FileObject

_OPENAI_URL: Final = "https://api.openai.com/v1"
_TIMEOUT_S: Final = 120.0
_PROCESSING: Final = {"pending", "running", "notRunning"}
_LONGEST_PROCESSING_S: Final = 600.0


class Served(Protocol):
    """What says where a server is."""

    @property
    def service(self) -> str:
        """Whose form of the API it is."""
        ...

    @property
    def base_url(self) -> str | None:
        """The address; None is OpenAI's own."""
        ...

    @property
    def api_version(self) -> str | None:
        """Azure's API version."""
        ...

    @property
    def org(self) -> str | None:
        """OpenAI's organisation ID."""
        ...

    @property
    def key_ref(self) -> SecretRef | None:
        """Where the API key is found."""
        ...


def key_of(spec: Served, resolve_secret: SecretResolver) -> Secret:
    """Return the API key of a server; a custom URL needs none."""
    try:
        return resolve_secret(spec.key_ref or SecretRef("openai_key", ()))
    except MissingKeyError:
        if spec.service != "custom_url":
            raise
        return Secret("no-key-needed")


def open_client(spec: Served, key: Secret, headers: Mapping[str, Secret] | None = None) -> openai.OpenAI:
    """Return a client that never sends anything twice."""
    import openai

    place: dict[str, Any] = {"base_url": spec.base_url or _OPENAI_URL}
    if spec.service == "azure":
        place = {"azure_endpoint": spec.base_url or "", "api_version": spec.api_version}
    make = openai.AzureOpenAI if spec.service == "azure" else openai.OpenAI
    return make(  # no variable holds what is secret: a traceback may show it
        api_key=key.reveal(),
        default_headers={name: value.reveal() for name, value in (headers or {}).items()},
        organization=spec.org,
        timeout=_TIMEOUT_S,
        max_retries=0,
        **place,
    )


def classify(error: Exception, redact: Redact) -> RowError:
    """Return what an exception of the SDK means."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return failure(error.status_code, told_by(error.response.content), error.response.headers, redact, "")
    cause = root(error)
    if isinstance(error, openai.APITimeoutError) and is_timeout(cause):
        return row_error("timeout", "No answer in time from the server.")
    is_lost = isinstance(error, openai.APIConnectionError)
    return (lost if is_lost else unexpected)(cause, redact, "")


class RemoteFiles:
    """A server's files for one purpose, named by the key of what they are for.

    Parameters
    ----------
    client : openai.OpenAI
        Open.
    purpose : {"fine-tune", "batch"}
        What the server takes them for.
    explain : callable
        Raises what an exception of the SDK means.
    redact : callable
        Takes keys out of a message.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        purpose: Literal["fine-tune", "batch"],
        explain: Callable[[Exception], NoReturn],
        redact: Callable[[str], str],
    ) -> None:
        self._client = client
        self._purpose = purpose
        self._explain = explain
        self._redact = redact

    def named(self, key: str) -> Iterator[FileObject]:
        """Yield the files that are for `key`."""
        name = _name(key)
        yield from (file for file in self._client.files.list(purpose=self._purpose) if file.filename == name)

    def upload(self, data: bytes | Path, key: str) -> FileObject:
        """Send a file, or find it from an earlier try, and wait until the server can use it."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        there = self._call(lambda: next((file for file in self.named(key) if file.bytes == size), None))
        file: FileObject = there or self._call(lambda: self._send(data, key))
        self._await_processing(file)
        return file

    def remove(self, file_id: str) -> None:
        """Delete a file; one that is gone already is no error."""
        import openai

        try:
            self._client.files.delete(file_id)
        except openai.NotFoundError:
            return
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._explain(error)

    def _send(self, data: bytes | Path, key: str) -> FileObject:
        if isinstance(data, bytes):
            return self._client.files.create(file=(_name(key), data, "application/jsonl"), purpose=self._purpose)
        with data.open("rb") as file:  # sent as it is read
            return self._client.files.create(file=(_name(key), file, "application/jsonl"), purpose=self._purpose)

    def _await_processing(self, file: FileObject) -> None:
        deadline, pause_s, name = time.monotonic() + _LONGEST_PROCESSING_S, 0.5, file.id
        while file.status in _PROCESSING and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 10.0)
            file = self._call(lambda: self._client.files.retrieve(name))
        if file.status == "error":
            raise JobFailedError(f"The server cannot use the data set: {self._redact(str(file.status_details or ''))}")

    def _call(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._explain(error)


def _name(key: str) -> str:
    return f"skllm-ray-{key}.jsonl"
