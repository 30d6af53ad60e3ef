"""Servers that tell the log-probabilities of any tokens, as vLLM, SGLang and llama.cpp's own do, with a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from skllm_ray.testing.chat_http import PATHS, Response, error_response
from skllm_ray.testing.chat_server import ChatServer
from skllm_ray.testing.script import StatusFault
from skllm_ray.testing.token_model import BOS, TokenModel

_MOST_IDS = 128


class TokenServer(ChatServer):
    """A `ChatServer` that also speaks of tokens, in the way of one kind of server.

    Parameters
    ----------
    kind : {"vllm", "sglang", "llama.cpp"}
        Whose endpoints it has.
    model : TokenModel or None, default=None
        What it computes with; None makes one. Chats are answered by the script all the same.
    **options
        Those of `ChatServer`.

    Attributes
    ----------
    asked : Counter of str
        Requests so far, by the last part of their path.

    Examples
    --------
    >>> import json
    >>> from urllib.request import Request, urlopen
    >>> with TokenServer("vllm") as server:
    ...     body = json.dumps({"prompt": "so good"}).encode()
    ...     json.load(urlopen(Request(server.root + "/tokenize", body)))["count"]
    2
    """

    def __init__(
        self, kind: Literal["vllm", "sglang", "llama.cpp"], model: TokenModel | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.kind = kind
        self.model = model or TokenModel()
        self.asked: Counter[str] = Counter()
        own: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
            "vllm": {"tokenize": self._ids, "detokenize": self._text, "completions": self._vllm},
            "sglang": {"tokenize": self._ids, "detokenize": self._text, "generate": self._sglang},
            "llama.cpp": {"tokenize": self._pieces, "apply-template": self._prompt, "completion": self._llama},
        }
        self._own = own[kind]
        self._http.paths = (*PATHS, *(f"/{name}" for name in self._own))

    def _answer_to(self, path: str, body: dict[str, Any], key: str) -> Response:
        name = path.rpartition("/")[2]
        self.asked[name] += 1
        if path.endswith(PATHS):
            return super()._answer_to(path, body, key)
        self._ending.wait(self.latency_s)
        if self._key is not None and key != self._key:
            return error_response(StatusFault(401, "Incorrect API key provided.", "invalid_api_key"))
        told = self._own[name](body)
        return told if isinstance(told, Response) else Response(200, json.dumps(told).encode())

    # --- tokens -------------------------------------------------------------------------------------------------------

    def _pieces(self, body: dict[str, Any]) -> Any:
        text = body.get("content", "")
        tokens = self.model.tokens((BOS if body.get("add_special") and text else "") + text)
        pieces = [{"id": one, "piece": self.model.text([one])} for one in tokens]
        return {"tokens": pieces if body.get("with_pieces") else tokens}

    def _ids(self, body: dict[str, Any]) -> Any:
        text = BOS + self.model.prompt(body["messages"]) if "messages" in body else body["prompt"]
        tokens = self.model.tokens(text)
        told: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}
        if body.get("return_token_strs") and self.kind == "vllm":
            told["token_strs"] = [self.model.text([one]) for one in tokens]
        return told

    def _text(self, body: dict[str, Any]) -> Any:
        return {"prompt" if self.kind == "vllm" else "text": self.model.text(body["tokens"])}

    def _prompt(self, body: dict[str, Any]) -> Any:
        return {"prompt": self.model.prompt(body["messages"])}

    # --- probabilities ------------------------------------------------------------------------------------------------

    def _vllm(self, body: dict[str, Any]) -> Any:
        """Answer as vLLM does: with the ids that are asked for, 128 at most."""
        ids, choices = body.get("logprob_token_ids", []), []
        if len(ids) > _MOST_IDS:
            return error_response(StatusFault(400, f"logprob_token_ids: at most {_MOST_IDS}."))
        for index, prompt in enumerate(body["prompt"]):
            written = self.model.write(prompt, body["max_tokens"])
            tops = []
            for i, token in enumerate(written):
                step = self.model.log_probs([*prompt, *written[:i]])
                tops.append({f"token_id:{one}": float(step[one]) for one in [token, *ids]})
            choices.append({"index": index, "text": self.model.text(written), "logprobs": {"top_logprobs": tops}})
        usage = _usage(body["prompt"], body["max_tokens"])
        return {"choices": choices[::-1], "usage": usage, "model": body.get("model", "")}

    def _sglang(self, body: dict[str, Any]) -> Any:
        """Answer as SGLang does."""
        found, n_tokens = [], body["sampling_params"]["max_new_tokens"]
        for prompt, ids in zip(body["input_ids"], body["token_ids_logprob"], strict=True):
            written, step = self.model.write(prompt, n_tokens), self.model.log_probs(prompt)
            told = [[[float(step[one]), one, None] for one in ids]]
            meta = {"output_token_ids_logprobs": told, "prompt_tokens": len(prompt), "completion_tokens": n_tokens}
            found.append({"text": self.model.text(written), "meta_info": {**meta, "cached_tokens": len(prompt) // 2}})
        return found

    def _llama(self, body: dict[str, Any]) -> Any:
        """Answer as llama.cpp's server does: the likeliest tokens, or what is left of them after a bias."""
        prompt, n_likeliest = body["prompt"], body.get("n_probs", 0)
        log_probs = self.model.log_probs(prompt)
        biased = log_probs.copy()
        for token, bias in body.get("logit_bias", []):
            biased[int(token)] += bias
        left = np.exp(biased - biased.max())
        is_after = bool(body.get("post_sampling_probs"))
        by, name = (left / left.sum(), "prob") if is_after else (log_probs, "logprob")
        top = [{"id": int(one), name: float(by[one])} for one in np.argsort(by)[::-1][:n_likeliest]]
        chosen = int(biased.argmax())
        first = {"id": chosen, name: float(by[chosen]), "top_probs" if is_after else "top_logprobs": top}
        return {
            "content": self.model.text(self.model.write(prompt, body["n_predict"])),
            "completion_probabilities": [first],
            "timings": {"cache_n": len(prompt) // 2, "prompt_n": len(prompt) - len(prompt) // 2, "predicted_n": 1},
        }


def _usage(prompts: Sequence[Sequence[int]], n_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": sum(map(len, prompts)),
        "completion_tokens": n_tokens * len(prompts),
        "prompt_tokens_details": {"cached_tokens": sum(len(one) // 2 for one in prompts)},
    }
