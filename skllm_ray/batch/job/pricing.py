"""What a job's models cost, and the rules that follow from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from skllm_ray.batch.job.options import JobOptions
from skllm_ray.batch.job.terms import Terms
from skllm_ray.config import Price
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.plan import Plan, Step
from skllm_ray.llm.base import BackendSpec
from skllm_ray.tasks.embedding import EmbeddingTask

_MOST_OUTPUT_TOKENS: Final = 1024


class Pricing:
    """The prices of a job's models.

    Parameters
    ----------
    plan : tuple of Step
        What is asked, as the estimator has it.
    options : JobOptions
        How to read, write and spend; the prices given there are those of the last step's model.

    Attributes
    ----------
    plan : tuple of Step
        The same with the prices that were given, of models that leave long waits to the job, and with a budget ask once
        for what was set aside once.

    Raises
    ------
    ConfigurationError
        If there is a budget, and a price that it needs is not known.
    """

    def __init__(self, plan: Plan, options: JobOptions) -> None:
        self._options = options
        known = plan[-1].spec.capabilities.price
        specs = [self._cautious(step.spec) for step in plan]
        specs[-1] = self._priced(specs[-1])
        self.plan = tuple(replace(step, spec=spec) for step, spec in zip(plan, specs, strict=True))
        if options.budget_usd is not None:
            self._check_half(known)
            for step in reversed(self.plan):
                self._check(step)

    @property
    def dearest(self) -> Price | None:
        """The most that a token costs of any of the models; None where nothing is known."""
        known = [price.long or price for step in self.plan if (price := step.spec.capabilities.price) is not None]
        return Price(max(one.input for one in known), max(one.output for one in known)) if known else None

    def terms(self, outage_s: float | None = None) -> tuple[Terms, ...]:
        """Return the rules for each step's model."""
        return tuple(self._terms(step.spec, outage_s) for step in self.plan)

    def _cautious(self, spec: BackendSpec) -> BackendSpec:
        retry = spec.capabilities.retry
        if retry is None:
            return spec
        return spec.with_retry(replace(retry, repeats_lost=self._options.budget_usd is None, waits=False))

    def _priced(self, spec: BackendSpec) -> BackendSpec:
        """Return the model with the prices that were given; a half that was not is the one that is known."""
        given = self._options
        if given.input_price is None and given.output_price is None:
            return spec
        return spec.with_price(self._given(spec.capabilities.price or Price(0.0)))

    def _given(self, known: Price) -> Price:
        given = self._options
        paid_in = known.input if given.input_price is None else given.input_price
        paid_out = known.output if given.output_price is None else given.output_price
        long = None if known.long is None else self._given(known.long)
        return Price(paid_in, paid_out, None, f"{datetime.now(UTC):%Y-%m-%d}", long, known.long_above)

    def _check_half(self, known: Price | None) -> None:
        """Raise where half of a price is given, and nobody knows the other half."""
        given = self._options
        half = (given.input_price is None) != (given.output_price is None)
        if not half or known is not None:
            return
        lacks = "input_price" if given.input_price is None else "output_price"
        if lacks == "input_price" or not isinstance(self.plan[-1].task, EmbeddingTask):
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but {lacks} is missing.",
                f"Give it too (--{lacks.replace('_', '-')}), in US dollars per million tokens; 0 if it is free.",
            )

    def _check(self, step: Step) -> None:
        """Raise unless the budget can be kept with one of the models."""
        budget, price = f"budget_usd={self._options.budget_usd:g}", step.spec.capabilities.price
        if price is None and step is self.plan[-1]:
            raise ConfigurationError(
                f"{budget}, but the price of {step.spec.model} is not known.",
                "Give input_price and output_price, in US dollars per million tokens (--input-price, --output-price).",
            )
        embeds, name = isinstance(step.task, EmbeddingTask), step.spec.model
        if price is None:
            does = "makes vectors" if embeds else "is asked before"
            output = "" if embeds else ", output_per_million=…"
            raise ConfigurationError(
                f"{budget}, but the price of {name}, which {does}, is not known.",
                f"Call SKLLMConfig.set_price({name!r}, input_per_million=…{output}).",
            )
        if price.output and not embeds and step.spec.most_output_tokens(_MOST_OUTPUT_TOKENS) is None:
            raise ConfigurationError(
                f"{budget}, but request_options allow answers of {name} without a bound.",
                "Give max_tokens, or what the server calls it, as an int of at least 1, or leave it out.",
            )

    def _terms(self, spec: BackendSpec, outage_s: float | None) -> Terms:
        price, bound = spec.capabilities.price, self._options.max_output_tokens
        capped = self._options.budget_usd is not None
        if bound is None and capped and price and price.output:
            bound = _MOST_OUTPUT_TOKENS
        rows = 256 if spec.capabilities.stateful or capped else 1024
        free = price is not None and not price.input and not price.output
        return Terms(
            None if free else price,
            free,
            bound,
            spec,
            self._options.wait_for_server_s if outage_s is None else outage_s,
            self._options.keep_going or outage_s is not None,
            rows,
            capped=capped,
            streams=spec.capabilities.streams,
        )
