"""What a job's models cost, and the rules that follow from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from skllm_ray.batch.job.options import JobOptions
from skllm_ray.batch.job.terms import Terms
from skllm_ray.config import Price
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import most_output_tokens, price_of_spec
from skllm_ray.tasks.embedding import EmbeddingTask

_MOST_OUTPUT_TOKENS: Final = 1024


class Pricing:
    """The prices of a job's models: of the one that answers, and of the one whose vectors the task renders with.

    Parameters
    ----------
    spec : BackendSpec
        The model that answers, as the estimator has it.
    embedder : BackendSpec or None
        The model whose vectors the task renders with; None where it needs none.
    task : Task
        What is asked.
    options : JobOptions
        How to read, write and spend.

    Raises
    ------
    ConfigurationError
        If there is a budget, and a price that it needs is not known.
    """

    def __init__(self, spec: Any, embedder: BackendSpec | None, task: Any, options: JobOptions) -> None:
        self._options = options
        self._embeds = isinstance(task, EmbeddingTask)
        self._embedder = embedder
        self.spec = self._priced(spec)
        self._check(price_of_spec(spec))

    @cached_property
    def price(self) -> Price | None:
        """That of the model that answers; None where it is not known."""
        return price_of_spec(self.spec)

    def terms(self) -> tuple[Terms, Terms]:
        """Return the rules for the model that answers, and for the one whose vectors the task renders with."""
        return self._terms(self.spec, self.price), self._terms(self._embedder or self.spec, self._embedder_price)

    def cautious(self, spec: Any) -> Any:
        """Return a model that leaves long waits to the job, and with a budget asks once for what was set aside once."""
        if not hasattr(spec, "patience"):  # only specs of API models have it: others do not ask again
            return spec
        lost = self._options.budget_usd is None
        return replace(spec, patience=replace(spec.patience, repeats_lost=lost, waits=False))

    @cached_property
    def _embedder_price(self) -> Price | None:
        return None if self._embedder is None else price_of_spec(self._embedder)

    def _priced(self, spec: Any) -> Any:
        """Return the model with the prices that were given; a half that was not is the one that is known."""
        given = self._options
        spec = self.cautious(spec)
        if (given.input_price is None and given.output_price is None) or not hasattr(spec, "price"):
            return spec  # only specs of API models have a price: local models cost nothing
        known = price_of_spec(spec)
        halves = {
            name: half if half is not None else getattr(known, name, 0.0)
            for name, half in (("input", given.input_price), ("output", given.output_price))
        }
        return replace(spec, price=Price(halves["input"], halves["output"], as_of=f"{datetime.now(UTC):%Y-%m-%d}"))

    def _check(self, known: Price | None) -> None:
        """Raise unless a budget is asked of models whose price is known."""
        given = self._options
        if given.budget_usd is None:
            return
        half = (given.input_price is None) != (given.output_price is None)
        if half and known is None:
            lacks = "input_price" if given.input_price is None else "output_price"
            if lacks == "input_price" or not self._embeds:
                raise ConfigurationError(
                    f"budget_usd={given.budget_usd:g}, but {lacks} is missing.",
                    f"Give it too (--{lacks.replace('_', '-')}), in US dollars per million tokens; 0 if it is free.",
                )
        if self.price is None:
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but the price of {self.spec.model} is not known.",
                "Give input_price and output_price, in US dollars per million tokens (--input-price, --output-price).",
            )
        if self.price.output and not self._embeds and most_output_tokens(self.spec, _MOST_OUTPUT_TOKENS) is None:
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but request_options allow answers without a bound.",
                "Give max_tokens, or what the server calls it, as an int of at least 1, or leave it out.",
            )
        if self._embedder is not None and self._embedder_price is None:
            name = self._embedder.model
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but the price of {name}, which makes vectors, is not known.",
                f"Call SKLLMConfig.set_price({name!r}, input_per_million=…).",
            )

    def _terms(self, spec: BackendSpec, price: Price | None) -> Terms:
        bound = self._options.max_output_tokens
        if bound is None and self._options.budget_usd is not None and price and price.output:
            bound = _MOST_OUTPUT_TOKENS
        placement = spec.placement
        capped = self._options.budget_usd is not None
        rows = placement.batch_size if placement.stateful else 256 if capped else 1024
        free = price is not None and not price.input and not price.output
        return Terms(None if free else price, free, bound, spec, self._options.wait_for_server_s, rows, capped=capped)
