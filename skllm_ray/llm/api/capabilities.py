"""What servers refuse, learnt from their answers: once for an endpoint and model, for all who ask it.

A request that nothing like it was answered before goes alone, so that a refusal costs one request and not a whole
wave. What a server refused is left out when that row is asked again, and counts for all rows as soon as the server
answers without it: a row whose own text is at fault teaches nothing. No SDK here.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Generic, Protocol, TypeAlias, TypeVar

from skllm_ray.errors import warn
from skllm_ray.llm.api.answer_limits import BOUNDS, TOO_LARGE, AnswerLimits, exceeds
from skllm_ray.llm.api.answers import Answer
from skllm_ray.llm.api.forms import FORMS
from skllm_ray.llm.api.label_probabilities import no_log_probs, read_answer_log_prob, read_log_probs
from skllm_ray.llm.api.options import RequestOptions, body_options, limits_in
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.api.token_probabilities import token_ends
from skllm_ray.llm.model_facts import ModelFacts
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.rate_limit.permits import Permit
from skllm_ray.tasks.base import ChatRequest, Reply, RowError, Usage

_PLACE = "what servers refuse"
_lock = threading.Lock()
_ENOUGH = 3
_ROWS_FAULT = {"bad_request", "context_length", "content_filter"}
_FREE: AbstractAsyncContextManager[None] = nullcontext()

FEW_ALTERNATIVES: Final = 5
_MOST_ALTERNATIVES = 20
FEWER: Final = "many alternatives"
"""What a server refuses that gives few alternatives of each token."""
_IGNORED = "limits on tokens"
_THINKING = re.compile(r"reason|think|effort", re.IGNORECASE)

Lessons: TypeAlias = Mapping[str, frozenset[str]]
"""What is refused, by endpoint."""

Q = TypeVar("Q")


@dataclass(slots=True)
class _Endpoint:
    """What this process knows of one endpoint and model."""

    refused: set[str] = field(default_factory=set)
    answered: set[Hashable] = field(default_factory=set)
    """The shapes of requests that were answered."""
    fruitless: Counter[Hashable] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    """How many rows of an answered shape were only answered without something."""


class _Endpoints:
    """All endpoints. ``ModelCache.clear()`` forgets them: a server may have been exchanged for a better one."""

    def __init__(self) -> None:
        self.by_name: dict[str, _Endpoint] = {}

    def close(self) -> None:
        """Hold nothing: whoever speaks with an endpoint goes on."""


def known() -> dict[str, frozenset[str]]:
    """Return what this process knows to be refused."""
    return {name: frozenset(one.refused) for name, one in list(_endpoints().by_name.items()) if one.refused}


def teach(lessons: Lessons) -> None:
    """Take over what another process learnt."""
    for name, refused in lessons.items():
        _endpoint(name).refused.update(refused)


def unknown_to(before: Lessons) -> Lessons:
    """Return what this process knows now and did not know `before`."""
    nothing: frozenset[str] = frozenset()
    found = {name: refused - before.get(name, nothing) for name, refused in known().items()}
    return {name: refused for name, refused in found.items() if refused}


def _endpoints() -> _Endpoints:
    with _lock:
        held = ModelCache.get(_PLACE)
        if not isinstance(held, _Endpoints):
            held = _Endpoints()
            ModelCache.store(_PLACE, held)
        return held


def _endpoint(name: str) -> _Endpoint:
    return _endpoints().by_name.setdefault(name, _Endpoint())


@dataclass(slots=True, eq=False)
class Question(Generic[Q]):
    """A row's request, and what came of it so far."""

    request: Q
    shape: Hashable
    """What requests have in common that hold the same parameters."""
    without: tuple[str, ...] = ()
    """What the server refused of this row."""


class Asked(Protocol):
    """What a dialect needs to know of a backend's spec."""

    @property
    def model(self) -> str:
        """What to call the model in a warning."""
        ...

    @property
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """What is known before anything is asked."""
        ...

    @property
    def request_options(self) -> RequestOptions:
        """The user's own parameters."""
        ...

    @property
    def log_probs(self) -> bool:
        """Whether the probabilities of the labels are needed."""
        ...

    @property
    def takes_log_probs(self) -> bool:
        """Whether probabilities are taken where there are any."""
        ...


class Learner:
    """Base of the dialects: what to leave out, and who goes first. All but the constructor runs on one event loop.

    Parameters
    ----------
    spec : OpenAISpec or VertexSpec
        Names the endpoint, the model and the user's own options.
    """

    limit_names: ClassVar[frozenset[str]] = frozenset()
    """What limits the length of an answer."""

    def __init__(self, spec: Asked) -> None:
        self._model = spec.model
        self._facts = spec.facts
        self._own = body_options(spec.request_options)
        has_limit = limits_in(self._own) or any(map(_THINKING.search, self._own))
        self._limits = AnswerLimits(is_bounded=not (self._facts.thinks or has_limit))
        self._log_probs = spec.log_probs
        self._asks_log_probs = spec.log_probs or spec.takes_log_probs
        self._endpoint = _endpoint(spec.endpoint)
        self._first: Question[Any] | None = None
        self._first_done = asyncio.Event()
        self._notices: list[str] = []

    def question(self, request: ChatRequest) -> Question[ChatRequest]:
        """Return `request` as a question."""
        schema = request.json_schema
        fields = schema and tuple(schema.get("properties", ()))
        has_system = any(message["role"] == "system" for message in request.messages)
        has_limit = request.max_output_tokens is not None
        return Question(request, (request.choices, fields, has_limit, has_system, self._asks_log_probs, *self._own))

    def token_limit(self, question: Question[ChatRequest]) -> int | None:
        """Return the most tokens that the answer may have; None leaves it to the model."""
        return self._limits.of(question.request, self.left_out(question))

    def lifts_bound(self, question: Question[ChatRequest], answer: Answer) -> RowError | None:
        """Return why to ask again, without the bound of an answer that cut it off, or under a higher one."""
        lifted = self._limits.lifted_for(question.request, self.left_out(question), answer)
        if lifted is None:
            return None
        question.without += (lifted[0],)
        return lifted[1]

    def blames_bound(self, question: Question[Any], message: str) -> bool:
        """Return whether to ask again without a bound that is more than the server has room for."""
        is_refused = self._limits.is_too_large(question.request, self.left_out(question), message)
        if is_refused:
            question.without += (TOO_LARGE,)
        return is_refused

    def unbounded(self, question: Question[ChatRequest]) -> RowError | None:
        """Return why a request must not be sent: it needs a limit, and the server takes or heeds none."""
        if not question.request.limit_is_hard:
            return None
        left_out = self.left_out(question)
        if _IGNORED not in left_out and not left_out.issuperset(self.limit_names):
            return None
        message = f"{self._model} takes no limit on the tokens of an answer, so that no budget can be kept."
        return RowError("not_supported", message, fatal=True)

    def overran(self, limit: object, usage: Usage) -> None:
        """Learn from an answer that is longer than the `limit` it was asked under that the server heeds none."""
        if exceeds(limit, usage.completion_tokens):
            self._endpoint.refused.add(_IGNORED)

    @property
    def refused(self) -> set[str]:
        """What the endpoint refuses, as all who ask it have learnt."""
        return self._endpoint.refused

    def wants_log_probs(self, request: ChatRequest) -> bool:
        """Return whether the answer is to come with the probabilities of its tokens."""
        return self._asks_log_probs and not request.is_free_text

    def refused_unasked(self, n_requests: int, tell: Callable[[int, Reply], None] | None) -> list[Reply] | None:
        """Return the replies of requests for probabilities where none are to be had, so that none is paid for."""
        if not self._log_probs or "logprobs" not in self._endpoint.refused:
            return None
        refused = Reply(error=no_log_probs(self._model), attempts=0)
        if tell is not None:
            for position in range(n_requests):
                tell(position, refused)
        return [refused] * n_requests

    def ask_all(
        self,
        requests: Sequence[ChatRequest],
        ask: Callable[[Question[ChatRequest], Permit], Awaitable[Reply | None]],
        runner: RequestRunner,
        tokens: TokenEstimate,
        tell: Callable[[int, Reply], None] | None,
    ) -> list[Reply]:
        """Return one reply per request, in order; what was learnt meanwhile is told as warnings."""
        refused = self.refused_unasked(len(requests), tell)
        if refused is not None:
            return refused
        kind = RequestKind(ask, lambda question: tokens.of_request(question.request), Reply, self.turn)
        replies = runner.run([self.question(request) for request in requests], kind, tell)
        self.tell()
        return replies

    def n_alternatives(self, request: ChatRequest, left_out: set[str]) -> int:
        """Return how many alternatives of each token to ask for: about as many as there are labels."""
        if request.choices is None:
            return 0
        n_labels = len(request.choices.labels)
        return FEW_ALTERNATIVES if FEWER in left_out else min(_MOST_ALTERNATIVES, max(FEW_ALTERNATIVES, n_labels))

    def with_confidence(self, reply: Reply, tokens: Sequence[dict[str, Any]] | None, question: Question[Any]) -> Reply:
        """Return a reply with the probabilities that came with it; where none did and some are needed, its error."""
        request, text = question.request, reply.text
        if reply.error is not None or text is None or not self.wants_log_probs(request):
            return reply
        if request.choices is None:
            return replace(reply, token_log_probs=token_ends(tokens or (), text))
        found, error = self.read_log_probs(tokens, text, question) if tokens or self._log_probs else (None, None)
        if error is not None and self._log_probs:
            return replace(reply, text=None, error=error)
        return replace(reply, log_probs=found)

    def blames_log_probs(self, question: Question[Any], error: RowError) -> bool:
        """Return whether to ask again without probabilities that are of use, but not needed.

        No row may fail for them: who refuses the first question of its shape, for a reason that cannot be read, is
        asked without.
        """
        is_open = question is self._first and "logprobs" not in self.left_out(question)
        if self._log_probs or not self._asks_log_probs or not is_open or error.kind != "bad_request":
            return False
        question.without += ("logprobs",)
        return True

    def read_log_probs(
        self, tokens: Sequence[dict[str, Any]] | None, text: str, question: Question[ChatRequest]
    ) -> tuple[tuple[float, ...] | None, RowError | None]:
        """Return the labels' log probabilities, or why there are none; an answer that is no label has neither."""
        if tokens and question.request.choices is not None and question.request.choices.multiple:
            return read_answer_log_prob(tokens)
        if tokens and question.request.choices is not None:
            return read_log_probs(tokens, text, question.request.choices.labels)
        if question.shape in self._endpoint.answered:
            lost = "logprobs" not in question.without  # others have them, so that asking again may help
            return None, RowError("malformed_response", "The answer came without log probabilities.", retryable=lost)
        question.without += ("logprobs",)  # the server ignores what it does not know
        return None, no_log_probs(self._model)

    def turn(self, question: Question[Any]) -> AbstractAsyncContextManager[None]:
        """Wait for the first of its shape, if nobody knows yet what comes of such a request."""
        return _FREE if self._may_go(question.shape) else self._after_the_first(question)

    def may_go(self, question: Question[Any]) -> bool:
        """Return whether it is known what comes of such a request."""
        return self._may_go(question.shape)

    def tell(self) -> None:
        """Warn the user of what was learnt, once."""
        while self._notices:
            warn(self._notices.pop(0))

    def left_out(self, question: Question[Any]) -> set[str]:
        """Return what the server refuses, or refused of this row."""
        refused = self._endpoint.refused
        return refused | set(question.without) if question.without else refused

    def came(self, question: Question[Any], error: RowError | None) -> None:
        """Learn from an answer that the server takes a question, without what was left out of it."""
        if error is not None and error.kind == "malformed_response":
            self.failed(question, error)
            return
        if error is not None and error.kind == "truncated":  # a higher bound was of no use
            question.without = tuple(name for name in question.without if name not in BOUNDS)
        self._learn(question)
        self._let_go(question)

    def failed(self, question: Question[Any], error: RowError) -> None:
        """Learn that the first question of its shape tells nothing: the next may have better luck, or nobody."""
        if question.shape not in self._endpoint.answered:
            self._endpoint.fruitless[question.shape] += 1 if error.kind in _ROWS_FAULT else _ENOUGH
        if not error.fatal:  # else the call ends before another one goes
            self._let_go(question)

    def _learn(self, question: Question[Any]) -> None:
        one = self._endpoint
        for name in question.without:
            if name == TOO_LARGE:
                continue
            if question.shape in one.answered:  # such requests are taken: it may be this row's fault
                one.doubts[name] += 1
            if name not in one.refused and (question.shape not in one.answered or one.doubts[name] >= _ENOUGH):
                one.refused.add(name)
                notice = self._notice(name)
                if notice and not (name in self.limit_names and not _has_limit(question.request)):
                    self._notices.append(f"{self._model} {notice}")
        one.answered.add(question.shape)

    def _notice(self, name: str) -> str:
        if name in {"logprobs", FEWER, *BOUNDS, *FORMS}:
            return ""  # the row's own error says so; a form of the answer is sought, not asked for
        if name == "system":
            return "takes no system message: what it says goes at the head of the user's first message."
        return f"does not accept {name!r}: asking on without it."

    def _may_go(self, shape: Hashable) -> bool:
        one = self._endpoint
        return shape in one.answered or one.fruitless[shape] >= _ENOUGH

    @asynccontextmanager
    async def _after_the_first(self, question: Question[Any]) -> AsyncIterator[None]:
        while self._first is not None and not self._may_go(question.shape):
            await self._first_done.wait()
        if self._may_go(question.shape):
            yield
            return
        self._first, self._first_done = question, asyncio.Event()
        try:
            yield
        finally:
            if self._first is question:  # it was never asked: others need not wait for one another
                self._endpoint.fruitless[question.shape] += _ENOUGH
            self._let_go(question)

    def _let_go(self, question: Question[Any]) -> None:
        if self._first is question:
            self._first = None
            self._first_done.set()


def _has_limit(request: object) -> bool:
    return isinstance(request, ChatRequest) and request.max_output_tokens is not None
