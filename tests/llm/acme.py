"""A vendor with an API of its own, as a contributor adds it: this file, and `ROW` in the table of providers.

The API takes ``POST /answers`` with the key in ``x-acme-key`` and ``{"model", "system", "turns", "most_tokens"}``, and
returns ``{"said", "model", "counts": {"in", "out"}}``, or ``{"error": {"message"}}`` with another status than 200.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from skllm_ray.config import Price, Secret, SecretRef
from skllm_ray.errors import ConfigurationError, NotSupportedError
from skllm_ray.llm.api.failures import Refusals, count_of, failure, lost, retry_after_s, root
from skllm_ray.llm.api.options import thaw_options
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner, whole
from skllm_ray.llm.api.response_body import client, parsed
from skllm_ray.llm.api.server_message import Told, told_in
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.base import Backend, ModelChoice, SecretResolver
from skllm_ray.llm.credentials import key_reference
from skllm_ray.llm.model_facts import ModelFacts
from skllm_ray.llm.registry import Provider
from skllm_ray.llm.spec import ApiSpec, api_settings, with_cost
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Usage

ROW = Provider("gpt", f"{__name__}:acme", "unknown", "none")
PRICES = {"small": Price(2.0, 10.0)}
URL = {"acme": "http://127.0.0.1:1"}
"""Where the vendor is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeSpec(ApiSpec):
    """A model of the vendor's."""

    base_url: str
    key_ref: SecretRef

    place = property(lambda self: ("acme", self.base_url))
    endpoint = property(lambda self: f"acme {self.base_url} {self.model}")
    facts = property(lambda _: ModelFacts(answer_form="plain", log_probs=False))
    has_vectors = property(lambda _: False)
    list_price = property(lambda self: PRICES.get(self.model))
    credential = property(lambda self: self.key_ref)

    def check(self) -> None:
        if not self.key_ref.fingerprint:
            raise ConfigurationError("The vendor takes no call without a key.", "Pass key=….")

    def open(self, resolve_secret: SecretResolver) -> AcmeBackend:
        return AcmeBackend(self, resolve_secret(self.key_ref))


def acme(choice: ModelChoice) -> AcmeSpec:
    """Return the spec of a model, under the settings of this process."""
    reference = key_reference("acme_key", ("ACME_KEY",), choice.key)
    return AcmeSpec(base_url=URL["acme"], key_ref=reference, **api_settings(choice))


class RefusedError(Exception):
    """The API answered with an error."""

    def __init__(self, status: int, told: Told, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.told, self.headers = status, told, headers


class AcmeBackend(Backend):
    """An open client."""

    def __init__(self, spec: AcmeSpec, key: Secret) -> None:
        self._spec, self._key = spec, key
        self._http = client(spec.patience.timeout_s)
        self._tokens = TokenEstimate()
        self._refusals = Refusals(spec.base_url)
        self._runner = RequestRunner(spec.patience, f"{spec.endpoint} {key.fingerprint}", spec.limit, spec.base_url)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        return self.complete_each(requests, None)

    def complete_each(self, requests: Sequence[ChatRequest], tell: Callable[[int, Reply], None] | None) -> list[Reply]:
        return self._runner.run(requests, RequestKind(self._ask, self._tokens.of_request, Reply), tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        raise NotSupportedError("The vendor has no models that embed.")

    def close(self) -> None:
        self._runner.close(self._http.aclose)

    async def _ask(self, request: ChatRequest, permit: Any) -> Reply:
        hide = partial(redact, secrets=[self._key], texts=[message["content"] for message in request.messages])
        with self._refusals.asking():
            try:
                told = await self._send(request)
            except RefusedError as error:
                found = failure(error.status, error.told, error.headers, hide, self._spec.base_url)
                if found.kind == "rate_limit":
                    permit.refusal_s = retry_after_s(error.headers) or -1.0
                return Reply(error=self._refusals.judge(found))
            except Exception as error:  # noqa: BLE001  the boundary to the transport
                return Reply(error=self._refusals.judge(lost(root(error), hide, self._spec.base_url)))
        self._refusals.answered()
        usage = Usage(count_of(told["counts"]["in"]), count_of(told["counts"]["out"]))
        self._tokens.learn(request, usage)
        usage = with_cost(usage, self._spec.capabilities.price)
        return Reply(whole(told["said"]), usage=usage, model=told["model"])

    async def _send(self, request: ChatRequest) -> Any:
        said = {role: [m["content"] for m in request.messages if m["role"] == role] for role in ("system", "user")}
        body = {"model": self._spec.model, "system": "\n".join(said["system"]), "turns": said["user"]}
        body |= {"most_tokens": request.max_output_tokens, **thaw_options(self._spec.request_options)}
        headers = {"x-acme-key": self._key.reveal()}
        answer = await self._http.post(f"{self._spec.base_url}/answers", json=body, headers=headers)
        if answer.status_code != 200:
            raise RefusedError(answer.status_code, told_in(parsed(answer.content)) or Told(), answer.headers)
        return parsed(answer.content)
