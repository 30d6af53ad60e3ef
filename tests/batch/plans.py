"""A cascade over a chat server, for tests of plans: two models, two prices, two limits."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.plan import Plan, Sampled, Step, Unsure
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import resolve
from skllm_ray.tasks.base import Row
from skllm_ray.testing import ChatServer, prompt_of

FAST, STRONG = "custom_url::fast", "custom_url::strong"
FAST_PRICE, STRONG_PRICE = 100.0, 4000.0
SAMPLED = 3


def sure_of_good(rows: Sequence[Row[Any]]) -> Any:
    """Return a score: the fast model is sure where it says "good"."""
    return np.asarray([float(row.value == "good") if row.valid else -np.inf for row in rows])


class Cascade(ZeroShotGPTClassifier):
    """Asks the fast model, and its own about the rows that are unsure, and about one that is sampled."""

    def _plan(self, spec: BackendSpec) -> Plan:
        takes = (Sampled(frozenset({SAMPLED}), "sample"), Unsure(0.5, score=sure_of_good))
        return (
            Step(self._task(), resolve(FAST).asked_for("log_probs"), stage="fast"),
            Step(self._task(), spec, self.takes if "takes" in vars(self) else takes, "strong"),
        )


class World:
    """What the two models were asked, and what it must cost."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.most: Counter[str] = Counter()
        """The most requests to each model at once."""
        self._in_flight: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.asked: Counter[tuple[str, int]] = Counter()
        self.tokens: Counter[str] = Counter()
        self.fault: Any = lambda model, n: None

    def answer(self, body: dict[str, Any]) -> Any:
        found = re.search(r"<(\d+)>", prompt_of(body))
        n = int(found[1]) if found else 1_000_001  # a text for the labels' prior
        fault = self.fault(body["model"], n)
        if fault is not None:
            return fault
        model = body["model"]
        with self._lock:
            self.asked[model, n] += 1
            self._in_flight[model] += 1
            self.most[model] = max(self.most[model], self._in_flight[model])
        time.sleep(self.latency_s)
        right = n % 4 if model == "fast" else n % 8
        text = f'{{"label": "{"good" if right else "bad"}"}}'
        with self._lock:
            self._in_flight[model] -= 1
            self.tokens[model] += len(prompt_of(body)) // 4 + len(text) // 4
        return text

    def n(self, model: str) -> int:
        return sum(count for (name, _), count in self.asked.items() if name == model)

    def bill(self) -> float:
        """Return what all answers cost."""
        return (self.tokens["fast"] * FAST_PRICE + self.tokens["strong"] * STRONG_PRICE) / 1e6


def texts(n: int) -> list[str]:
    return [f"a thing <{i}>" for i in range(n)]


def expected(i: int) -> tuple[str, str]:
    """Return the label and the stage of row `i`."""
    if i == SAMPLED:
        return "good", "sample"
    if i % 4:
        return "good", "fast"
    return ("good" if i % 8 else "bad"), "strong"


def configure(server: ChatServer) -> Cascade:
    """Return a fitted cascade over `server`; each model has its own price and limit."""
    SKLLMConfig.set_gpt_url(server.url)
    for model, price in ((FAST, FAST_PRICE), (STRONG, STRONG_PRICE)):
        SKLLMConfig.set_price(model, input_per_million=price, output_per_million=price)
    SKLLMConfig.set_rate_limit(FAST, requests_per_minute=60_000, max_concurrency=8)
    SKLLMConfig.set_rate_limit(STRONG, requests_per_minute=30_000, max_concurrency=4)
    return Cascade(model=STRONG, on_error="coerce").fit(None, ["bad", "good"])
