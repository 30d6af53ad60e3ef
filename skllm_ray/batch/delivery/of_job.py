"""How a job is delivered, as its options say, and what of its batches is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from skllm_ray.batch.delivery.batch_records import attempt, has_records, open_records
from skllm_ray.batch.delivery.deadline import Deadline, seconds_of
from skllm_ray.batch.delivery.deliver import Delivery
from skllm_ray.batch.delivery.gather import GatherWork
from skllm_ray.batch.delivery.order import Orders
from skllm_ray.batch.job.options import JobOptions
from skllm_ray.batch.job.progress_display import Screen, State
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.worker import UnitWork
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.storage import Folder
from skllm_ray.config import Price, Secret
from skllm_ray.errors import ConfigurationError, InputError, NotSupportedError
from skllm_ray.execution.plan import Plan
from skllm_ray.llm.provider_batches import BatchApi, BatchService, BatchSpec, ProviderBatch, open_batch_service
from skllm_ray.tasks.embedding import EmbeddingTask

Watch = tuple[Screen, State, Callable[[], None]]


def apis_of(plan: Plan) -> dict[int, BatchApi]:
    """Return how the batches of each step of a plan are made, of those that batches can deliver."""
    found = {number: step.spec.batch_api() for number, step in enumerate(plan)}
    embeds = {number for number, step in enumerate(plan) if isinstance(step.task, EmbeddingTask)}
    return {n: api for n, api in found.items() if api is not None and (api.embeds or n not in embeds)}


def check_delivery(options: JobOptions, plan: Plan) -> None:
    """Raise where the options ask for batches of models that have none, or for a deadline that cannot be kept.

    Raises
    ------
    ConfigurationError
        If the deadline cannot be.
    NotSupportedError
        If no step of the plan can be delivered by batch.
    """
    if options.deadline is not None:
        seconds_of(options.deadline)
        if options.delivery == "direct":
            raise ConfigurationError(
                f"deadline={options.deadline!r} is given without batches.", "It goes with delivery='batch' alone."
            )
    apis = apis_of(plan) if options.delivery == "batch" else {}
    if options.deadline is not None and not all(api.is_asked_singly for api in apis.values()):
        raise ConfigurationError(
            f"deadline={options.deadline!r}, but {plan[-1].spec.model} takes batches alone and is not asked directly.",
            "Leave it out, or name a deployment that takes single requests.",
        )
    if options.delivery == "batch" and not apis:
        raise NotSupportedError(
            f"delivery='batch': there are no batches for what is asked of {plan[-1].spec.model}.",
            "OpenAI, Azure OpenAI, Vertex AI (chats alone) and servers with OpenAI's files and batches have them.",
        )


def refuse_live_batches(output: Folder, output_uri: str) -> None:
    """Raise where batches may still bring answers: asking directly would pay for them twice.

    Raises
    ------
    InputError
        Naming how to go on.
    """
    if not has_records(output):
        return
    live = [record for record in open_records(output).jobs() if record.is_live]
    if live:
        raise InputError(
            f"output={output_uri!r} has {len(live):,} batches whose answers are not home, so that asking directly may "
            "pay for them twice.",
            "Run it with delivery='batch' (--delivery batch), which takes them up. `skllm-ray batches cancel "
            f"{output_uri}` stops them; what they have answered comes home all the same.",
        )


def batch_terms(terms: Sequence[Terms], apis: Mapping[int, BatchApi], share: float | None) -> dict[int, Terms]:
    """Return the rules of the steps that are delivered by batch, at the batch's price."""
    found = {n: terms[n] for n in apis}
    return {n: one if one.price is None else replace(one, price=apis[n].price(share)) for n, one in found.items()}


def at_flex(work: UnitWork) -> UnitWork | None:
    """Return the same work, each step at its flex tier where it has one; None where none has."""
    specs = [step.spec.at_flex() for step in work.plan]
    if not any(specs):
        return None
    plan = tuple(replace(step, spec=spec or step.spec) for step, spec in zip(work.plan, specs, strict=True))
    terms = [
        one if spec is None else replace(one, spec=spec, price=spec.capabilities.price)
        for one, spec in zip(work.terms, specs, strict=True)
    ]
    return replace(work, plan=plan, terms=tuple(terms))


def delivery_of(
    work: UnitWork,
    state: OutputState,
    options: JobOptions,
    secrets: Mapping[str, Secret],
    dearest: Price | None,
    watch: Watch,
    keep_watch: Callable[[], None],
) -> Delivery:
    """Return what delivers a job's rows by batch.

    Raises
    ------
    NotSupportedError
        If a server has no batches.
    """
    apis, share = apis_of(work.plan), options.batch_price_share
    held = {one.name: getattr(work, one.name) for one in fields(UnitWork)}
    gather = GatherWork(**held, batch_terms=batch_terms(work.terms, apis, share), of=work)
    records, check = open_records(state.output), watch[2]

    def open_service(spec: BatchSpec) -> BatchService:
        return open_batch_service(spec, secrets)

    for api in apis.values():
        service = open_service(api.order(embeds=False, content_sha256="", nonce=""))
        try:
            service.check()
        finally:
            service.close()
    orders = Orders(
        state.output, records, apis, open_service, check, price_share=share, keep_files=options.keep_remote_files
    )
    told, began = options.deadline, work.manifest.created
    deadline = None if told is None else Deadline.of(told, began, work.plan[-1].spec)
    budget, late = (options.budget_usd, dearest), (deadline, at_flex(work))
    return Delivery(state, gather, apis, records, orders, open_service, budget, watch, keep_watch, late)


def delivered(output: Folder, known_usd: float) -> str:
    """Return how much came by batches and what that cost, of what is known to be spent; empty where nothing did."""
    records = [one for one in open_records(output).jobs() if one.collected] if has_records(output) else []
    if not records:
        return ""
    answers, costs = sum(one.answered for one in records), [one.cost_usd for one in records]
    batches = f"{len(records):,} batch{'es' if len(records) > 1 else ''}: {answers:,} answers"
    if None in costs:
        return f"{batches}, price not known"
    by_batch = sum(cost or 0.0 for cost in costs)
    return f"{batches} for {by_batch:,.4f} USD; directly: {max(0.0, known_usd - by_batch):,.4f} USD"


def set_aside(state: OutputState) -> float:
    """Return what live batches may cost: it counts as spent, and is not known to be."""
    records: list[ProviderBatch] = open_records(state.output).jobs() if has_records(state.output) else []
    runs = {attempt(record.key) for record in records if record.is_live}
    bills = (bill for attempts in state.journals.values() for run, bill in attempts.items() if run in runs)
    return sum(bill.unknown_usd for bill in bills)
