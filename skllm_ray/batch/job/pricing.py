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

    def __init__(self, spec: BackendSpec, embedder: BackendSpec | None, task: Any, options: JobOptions) -> None:
        self._options = options
        self._embeds = isinstance(task, EmbeddingTask)
        self._embedder = embedder
        self.spec = self._priced(spec)
        self._check(spec.capabilities.price)

    @cached_property
    def price(self) -> Price | None:
        """That of the model that answers; None where it is not known."""
        return self.spec.capabilities.price

    def terms(self) -> tuple[Terms, Terms]:
        """Return the rules for the model that answers, and for the one whose vectors the task renders with."""
        return self._terms(self.spec, self.price), self._terms(self._embedder or self.spec, self._embedder_price)

    def cautious(self, spec: BackendSpec) -> BackendSpec:
        """Return a model that leaves long waits to the job, and with a budget asks once for what was set aside once."""
        retry = spec.capabilities.retry
        if retry is None:
            return spec
        return spec.with_retry(replace(retry, repeats_lost=self._options.budget_usd is None, waits=False))

    @cached_property
    def _embedder_price(self) -> Price | None:
        return None if self._embedder is None else self._embedder.capabilities.price

    def _priced(self, spec: BackendSpec) -> BackendSpec:
        """Return the model with the prices that were given; a half that was not is the one that is known."""
        given = self._options
        spec = self.cautious(spec)
        if given.input_price is None and given.output_price is None:
            return spec
        known = spec.capabilities.price or Price(0.0)
        paid_in = known.input if given.input_price is None else given.input_price
        paid_out = known.output if given.output_price is None else given.output_price
        return spec.with_price(Price(paid_in, paid_out, as_of=f"{datetime.now(UTC):%Y-%m-%d}"))

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
        if self.price.output and not self._embeds and self.spec.most_output_tokens(_MOST_OUTPUT_TOKENS) is None:
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
        capped = self._options.budget_usd is not None
        rows = 256 if spec.capabilities.stateful or capped else 1024
        free = price is not None and not price.input and not price.output
        return Terms(
            None if free else price,
            free,
            bound,
            spec,
            self._options.wait_for_server_s,
            rows,
            capped=capped,
            streams=spec.capabilities.streams,
        )
