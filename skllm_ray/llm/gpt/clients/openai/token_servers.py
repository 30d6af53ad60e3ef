"""Servers that tell the log-probabilities of any tokens: vLLM, SGLang, and llama.cpp's own, each by its own means."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from skllm_ray.llm.api.failures import count_of
from skllm_ray.llm.api.label_scores import AbsentError, TokenServer, UnfitError
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.tasks.base import Message, Usage, answer_start

Post: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Posts a body to an address, or a path below the base URL; returns the answer's JSON, raises what the SDK does."""

_VLLM_IDS: Final = 128
_SGLANG_IDS: Final = 512
_WRITTEN: Final = 8  # tokens that tell whether a model begins with a thought
_SAMPLING: Final = {"temperature": 1.0, "top_p": 1.0}
_KEPT_PROMPTS: Final = 64
_LIKELIEST: Final = 128
_LLAMA_CLOSINGS: Final = 32
_LEAST: Final = 1e-37
_RAISED: Final = {"samplers": ["temperature"], "temperature": 1.0, "post_sampling_probs": True}


@dataclass
class VLLM:
    """A vLLM server."""

    post: Post
    root: str
    """The address without ``/v1``."""
    model: str
    template: Mapping[str, Any]
    """What the user says of the chat template."""
    most_ids: int = _VLLM_IDS

    async def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins."""
        body = {"model": self.model, "messages": list(messages), "add_generation_prompt": True, **self.template}
        return _ids(await self.post(f"{self.root}/tokenize", body))

    async def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt's tokens."""
        told = await self.post(f"{self.root}/detokenize", {"model": self.model, "tokens": list(tokens)})
        found = told.get("prompt", told.get("text")) if isinstance(told, dict) else None
        if not isinstance(found, str):
            raise UnfitError("The server tells no text of tokens.")
        return found

    async def tokens(self, text: str) -> list[int]:
        """Return the tokens of a prompt's text."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return _ids(await self.post(f"{self.root}/tokenize", body))

    async def closings(self, texts: Sequence[str]) -> list[int]:
        """Return those of some texts that are single tokens."""
        body = {"model": self.model, "prompt": "\n".join(texts), "add_special_tokens": False, "return_token_strs": True}
        told = await self.post(f"{self.root}/tokenize", body)
        ids, pieces = _ids(told), told.get("token_strs")
        if len(texts) > 1 and isinstance(pieces, list) and len(pieces) == len(ids):
            return list(dict.fromkeys(one for one, piece in zip(ids, pieces, strict=True) if piece in texts))
        found = [await self.tokens(text) for text in texts[: self.most_ids // 8]]
        return list(dict.fromkeys(one[0] for one in found if len(one) == 1))

    async def log_probs(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> tuple[list[dict[int, float]], Usage]:
        """Return the log-probabilities of `ids` behind each prompt, all in one request."""
        told = await self.post("/completions", self._body(prompts, ids, 1))
        choices = sorted(_list(told, "choices"), key=lambda choice: count_of(choice.get("index")))
        found = [_by_id(choice, ids) for choice in choices]
        if len(found) != len(prompts):
            raise UnreadableError("The answer holds another number of choices than was asked for.")
        return found, _usage(told)

    async def written(self, prompt: Sequence[int]) -> str:
        """Return how the model goes on; it also shows that the server heeds what `log_probs` asks for."""
        told = await self.post("/completions", {**self._body([prompt], prompt[:1], _WRITTEN), "temperature": 0})
        choice = next(iter(_list(told, "choices")), {})
        _by_id(choice, prompt[:1])
        return str(choice.get("text") or "")

    def _body(self, prompts: Sequence[Sequence[int]], ids: Sequence[int], n_tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": n_tokens,
            "logprobs": 1,
            "logprob_token_ids": list(ids),
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            **_SAMPLING,
        }


@dataclass
class SGLang(VLLM):
    """An SGLang server, which tells log-probabilities at ``/generate``."""

    most_ids: int = _SGLANG_IDS

    async def log_probs(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> tuple[list[dict[int, float]], Usage]:
        """Return the log-probabilities of `ids` behind each prompt, all in one request."""
        told = await self._generate(prompts, ids, 1, _SAMPLING)
        found, usage = [], Usage()
        for one in told:
            meta = one.get("meta_info") if isinstance(one, dict) else None
            steps = meta.get("output_token_ids_logprobs") if isinstance(meta, dict) else None
            first = steps[0] if isinstance(steps, list) and steps else None
            found.append(_checked({pair[1]: pair[0] for pair in first or ()}, ids))
            usage = Usage(
                usage.prompt_tokens + count_of(meta and meta.get("prompt_tokens")),
                usage.completion_tokens + count_of(meta and meta.get("completion_tokens")),
                usage.cached_tokens + count_of(meta and meta.get("cached_tokens")),
            )
        return found, usage

    async def written(self, prompt: Sequence[int]) -> str:
        """Return how the model goes on."""
        (told,) = await self._generate([prompt], prompt[:1], _WRITTEN, {"temperature": 0.0})
        return str(told.get("text") or "")

    async def _generate(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], n_tokens: int, sampling: Mapping[str, float]
    ) -> list[Any]:
        body = {
            "input_ids": [list(prompt) for prompt in prompts],
            "sampling_params": {"max_new_tokens": n_tokens, "skip_special_tokens": False, **sampling},
            "return_logprob": True,
            "token_ids_logprob": [list(ids)] * len(prompts),
        }
        told = await self.post(f"{self.root}/generate", body)
        if not isinstance(told, list) or len(told) != len(prompts):
            raise UnreadableError("The answer holds another number of results than was asked for.")
        return told


@dataclass
class LlamaServer:
    """llama.cpp's own server.

    It tells the likeliest tokens, before anything is done to them, and what remains of all tokens after that. So where
    some are not among the likeliest, these and the likeliest one are raised by the same bias above all others: what
    remains tells how their probabilities compare.
    """

    post: Post
    root: str
    template: Mapping[str, Any]
    most_ids: int = 1 << 16
    _texts: dict[tuple[int, ...], str] = field(default_factory=dict)

    async def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins."""
        told = await self.post(f"{self.root}/apply-template", {"messages": list(messages), **self.template})
        text = told.get("prompt") if isinstance(told, dict) else None
        if not isinstance(text, str):
            raise UnfitError("The server tells no prompt.")
        tokens = await self.tokens(text)
        if len(self._texts) >= _KEPT_PROMPTS:
            self._texts.pop(next(iter(self._texts)))
        self._texts[tuple(tokens)] = text
        return tokens

    async def text(self, tokens: Sequence[int]) -> str:
        """Return the text of the latest prompts' tokens."""
        if tuple(tokens) not in self._texts:
            raise UnfitError("The server tells no text of tokens.")
        return self._texts[tuple(tokens)]

    async def tokens(self, text: str) -> list[int]:
        """Return the tokens of a prompt's text."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return _ids(await self.post(f"{self.root}/tokenize", body))

    async def closings(self, texts: Sequence[str]) -> list[int]:
        """Return those of some texts that are single tokens."""
        body = {"content": "\n".join(texts), "add_special": False, "with_pieces": True}
        pieces = _list(await self.post(f"{self.root}/tokenize", body), "tokens")
        known = frozenset(texts[:_LLAMA_CLOSINGS])
        return list(dict.fromkeys(one["id"] for one in pieces if one.get("piece") in known))

    async def log_probs(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> tuple[list[dict[int, float]], Usage]:
        """Return the log-probabilities of `ids` behind each prompt, one request after the other."""
        found: list[dict[int, float]] = []
        usage = Usage()
        for prompt in prompts:
            told = await self._complete(prompt, n_probs=_LIKELIEST)
            usage = _with_timings(usage, told)
            known = {one["id"]: one["logprob"] for one in _likeliest(told, "top_logprobs")}
            missing = [token for token in ids if token not in known]
            if missing and known:
                first = max(known, key=known.__getitem__)
                told = await self._complete(
                    prompt, **_RAISED, n_probs=len(missing) + 1, logit_bias=_bias([first, *missing])
                )
                usage = _with_timings(usage, told)
                shares = {one["id"]: one["prob"] for one in _likeliest(told, "top_probs")}
                least = math.log(max(shares.get(first, 0.0), _LEAST))
                known |= {one: known[first] + math.log(max(shares.get(one, 0.0), _LEAST)) - least for one in missing}
            found.append(_checked(known, ids))
        return found, usage

    async def written(self, prompt: Sequence[int]) -> str:
        """Return how the model goes on."""
        told = await self._complete(prompt, n_predict=_WRITTEN)
        return str(told.get("content") or "") if isinstance(told, dict) else ""

    async def _complete(self, prompt: Sequence[int], **more: Any) -> Any:
        body = {"prompt": list(prompt), "n_predict": 1, "temperature": 0.0, "cache_prompt": True, **more}
        return await self.post(f"{self.root}/completion", body)


async def token_server(
    post: Post, base_url: str, model: str, messages: Sequence[Message], template: Mapping[str, Any]
) -> TokenServer | None:
    """Return what a server can do for scores, seen by asking it; None where it can not, or the model thinks first.

    Raises
    ------
    Exception
        What the client raises for a server that refuses what it is asked, or is not there.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    vllm = VLLM(post, root, model, template)
    try:
        prompt = await vllm.prompt(messages)
    except AbsentError:
        return None
    except UnfitError:  # llama.cpp finds no "content", and so no tokens
        llama = LlamaServer(post, root, template)
        prompt = await llama.prompt(messages)
        return None if _thinks(await llama.text(prompt), await llama.written(prompt)) else llama
    for server in (vllm, SGLang(post, root, model, template)):
        try:
            return None if _thinks(await server.text(prompt), await server.written(prompt)) else server
        except UnfitError:  # it does not heed what vLLM knows
            continue
    return None


def _thinks(prompt: str, written: str) -> bool:
    """Return whether a model begins its answers with a thought, or in a channel: no label would follow at once."""
    opened = prompt.rpartition("<think")
    is_open = bool(opened[1]) and "</think" not in opened[2]
    return is_open or answer_start(written.lstrip()) > 0 or written.lstrip().startswith(_THOUGHTS)


_THOUGHTS: Final = (
    "<think",
    "<thought",
    "<reason",
    "<seed:think",
    "[THINK]",
    "<|channel",
    "<|START_THINKING",
    "analysis",
)


def _ids(told: Any) -> list[int]:
    """Return the tokens in an answer."""
    found = told.get("tokens") if isinstance(told, dict) else None
    if not isinstance(found, list) or not found or not all(type(one) is int for one in found):
        raise UnfitError("The server tells no tokens.")
    return found


def _list(told: Any, name: str) -> list[dict[str, Any]]:
    found = told.get(name) if isinstance(told, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UnreadableError(f"The answer holds no {name}.")
    return found


def _by_id(choice: Mapping[str, Any], ids: Sequence[int]) -> dict[int, float]:
    """Return the log-probabilities of the first token of a choice, by the tokens' numbers."""
    told = choice.get("logprobs")
    steps = told.get("top_logprobs") if isinstance(told, dict) else None
    first = steps[0] if isinstance(steps, list) and steps and isinstance(steps[0], dict) else {}
    numbers = {name.removeprefix("token_id:"): value for name, value in first.items() if name.startswith("token_id:")}
    return _checked({int(name): value for name, value in numbers.items() if name.isdecimal()}, ids)


def _checked(known: Mapping[int, Any], ids: Sequence[int]) -> dict[int, float]:
    """Return the log-probabilities of `ids`; raise where one is missing or none."""
    found = {token: known.get(token) for token in ids}
    if not all(isinstance(one, (int, float)) and one <= _ROUNDING for one in found.values()):
        raise UnfitError("The server does not tell the log-probabilities of the tokens that it is asked for.")
    return {token: float(one) for token, one in found.items() if one is not None}


_ROUNDING: Final = 0.01


def _usage(told: Mapping[str, Any]) -> Usage:
    usage = told.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens")), cached)


def _likeliest(told: Any, name: str) -> list[dict[str, Any]]:
    """Return the tokens of the first place of llama.cpp's answer."""
    first = next(iter(_list(told, "completion_probabilities")), {})
    value = "logprob" if name == "top_logprobs" else "prob"
    return [
        one for one in _list(first, name) if type(one.get("id")) is int and isinstance(one.get(value), (int, float))
    ]


def _bias(tokens: Sequence[int]) -> list[list[float]]:
    return [[token, 1e4] for token in tokens]


def _with_timings(usage: Usage, told: Any) -> Usage:
    """Count a request of llama.cpp's: what it read, and what of that was there already."""
    timings = told.get("timings") if isinstance(told, dict) else None
    timings = timings if isinstance(timings, dict) else {}
    n_cached, n_read = count_of(timings.get("cache_n")), count_of(timings.get("prompt_n"))
    return Usage(
        usage.prompt_tokens + n_cached + n_read,
        usage.completion_tokens + count_of(timings.get("predicted_n")),
        usage.cached_tokens + n_cached,
    )
