"""Labels scored exactly by a server of one's own, where it can: learnt once for each endpoint and model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final

from skllm_ray.config import Price
from skllm_ray.llm.api.label_scores import AbsentError, LabelScorer, UnfitError
from skllm_ray.llm.api.options import body_options
from skllm_ray.llm.api.response_body import StatusError, UnreadableError
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.gpt.clients.openai.token_servers import token_server
from skllm_ray.llm.rate_limit.permits import Permit
from skllm_ray.tasks.base import ChatRequest, Message, Reply

_logger = logging.getLogger(__name__)
SCORES: Final = "scores of labels"
"""What an endpoint refuses that only writes labels."""
_OF_THE_TEMPLATE: Final = ("chat_template", "chat_template_kwargs")
_HARMLESS: Final = {"temperature", "top_p", "top_k", "min_p", "seed", *_OF_THE_TEMPLATE}
_NOT_OFFERED: Final = {400, 404, 405, 410, 415, 422, 501}
_OF_THE_KEY: Final = {401, 403}
_DOWN: Final = {502, 503}
_MOST_FAILURES: Final = 3

Send = Callable[[str, dict[str, Any], Permit], Awaitable[tuple[object, Any]]]


class ExactScores:
    """Scores the labels of rows at one endpoint, until it turns out that it cannot be done there.

    It is not tried where a row's requests are counted or paid for: a row takes more than one, and each reads the prompt
    again, if only from the server's cache.

    Parameters
    ----------
    spec : OpenAISpec
        The model and its server.
    send : callable
        Posts a body under a permit.
    """

    def __init__(self, spec: OpenAISpec, send: Send) -> None:
        own = body_options(spec.request_options)
        is_counted = spec.limit is not None and spec.limit.requests_per_minute is not None
        is_paid = spec.price is not None and spec.price != Price(0.0)
        wants = spec.confidence == "auto" and (spec.log_probs or spec.takes_log_probs)
        self._tries = spec.api == "custom_url" and wants and not is_counted and not is_paid and own.keys() <= _HARMLESS
        self._template: dict[str, Any] = {name: own[name] for name in _OF_THE_TEMPLATE if name in own}
        self._spec, self._send = spec, send
        self._permit: ContextVar[Permit] = ContextVar("skllm_ray_permit")
        self._scorer: LabelScorer | None = None
        self._finding = asyncio.Lock()
        self._n_failures = 0

    def wants(self, request: ChatRequest) -> bool:
        """Return whether to try it with a request: one label is to be chosen, and its probability shown."""
        return self._tries and request.choices is not None and not request.choices.multiple

    async def reply(self, request: ChatRequest, messages: Sequence[Message], permit: Permit) -> Reply | None:
        """Return the scored reply; None where the server cannot do it, and so writes its answer.

        Raises
        ------
        Exception
            What the client raises where the server is not there, or fails as it may with any request.
        """
        if request.choices is None:
            return None
        self._permit.set(permit)
        try:
            scorer = self._scorer or await self._found(messages)
            if scorer is None:
                return None
            return await scorer.reply(messages, request.choices, self._spec.model)
        except (UnfitError, UnreadableError) as error:
            self._give_up(str(error))
        except Exception as error:
            if self._scorer is not None or not self._is_odd(error):
                raise
        return None

    @property
    def is_refused(self) -> bool:
        """Whether it was tried, and cannot be done."""
        return not self._tries

    def _is_odd(self, error: Exception) -> bool:
        """Return whether a failure of the first try means that this row's answer is written, or tells what is wrong."""
        status = _status(error)
        is_odd = status in _OF_THE_KEY or (status >= 500 and status not in _DOWN)
        self._n_failures += is_odd
        if self._n_failures >= _MOST_FAILURES:
            self._give_up("the server fails when it is asked")
        return is_odd

    def _give_up(self, why: str) -> None:
        _logger.info("%s: labels are written rather than scored: %s", self._spec.model, why)
        self._tries = False

    async def _found(self, messages: Sequence[Message]) -> LabelScorer | None:
        async with self._finding:
            if self._scorer is None and self._tries:
                url, model = self._spec.base_url or "", self._spec.model
                server = await token_server(self._post, url, model, messages, self._template)
                if server is None:
                    self._give_up("the model thinks first, or the server tells no log-probabilities of tokens")
                else:
                    self._scorer = LabelScorer(server)
                    _logger.info("%s: labels are scored exactly (%s)", model, type(server).__name__)
            return self._scorer

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            told, _ = await self._send(path, body, self._permit.get())
        except Exception as error:
            if self._scorer is None and _status(error) in _NOT_OFFERED:
                raise AbsentError(f"the server does not offer {path.rpartition('/')[2]}") from None
            raise
        return told


def _status(error: Exception) -> int:
    return error.answer.status if isinstance(error, StatusError) else 0
