"""Jobs that are delivered by provider batches: what becomes of every row, what is paid, and what dies in between."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from skllm_ray import batch
from skllm_ray.batch.delivery.deadline import Deadline
from skllm_ray.batch.delivery.pace import QueueLimit
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.report import write_report
from skllm_ray.classification import DynamicFewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import Price, SKLLMConfig
from skllm_ray.errors import (
    AmbiguousSubmission,
    ConfigurationError,
    InputError,
    JobFailedError,
    NotSupportedError,
    SkllmRayWarning,
)
from skllm_ray.llm.provider_batches import BatchSpec, FileLimits, ProviderBatch
from skllm_ray.llm.tiers import at_tier
from skllm_ray.testing import StatusFault, prompt_of, provider_batches
from skllm_ray.testing.batch_server import BatchFault, BatchServer, SubmitFault
from skllm_ray.testing.chat_forms import default_answer
from skllm_ray.testing.tuning_http import error_response
from skllm_ray.vectorization import GPTVectorizer
from tests.batch.delivery_worlds import PRICES, Death, N, World, die_at
from tests.batch.worlds import LABELS, classifier, read, write


def test_all_rows_come_by_batch_but_the_one_that_tells_what_the_server_takes(world):
    result = world.run()
    world.check_home()
    assert result.complete
    assert world.server.bill.requests == {"batch": N - 1, "standard": 1}
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert read(world.output)["cost_usd"].sum() == pytest.approx(world.paid_usd, abs=1e-9)
    assert (result.total.asked, result.this_run.asked, result.total.unpriced) == (N, N, 0)
    assert result.total.prompt_tokens == sum(world.server.bill.prompt_tokens.values())
    assert len(world.server.batches) == 1


def test_what_came_how_is_told_at_the_end_and_in_the_report(world):
    world.server.batch_faults.extend([BatchFault.EXPIRED] * 9)
    result = world.run()
    by_batch = world.server.bill.requests["batch"]
    directly = world.server.bill.requests["standard"] * 100e-6
    told = f"3 batches: {by_batch} answers for {by_batch * 50e-6:.4f} USD; directly: {directly:.4f} USD"
    assert result.delivered == told
    page = write_report(world.output, str(world.folder / "report.html"))
    assert told in Path(page).read_text("utf-8")
    direct = world.run(output=str(world.folder / "direct"), delivery="direct", batch_price_share=None)
    assert direct.delivered == ""


def test_a_batch_asks_what_single_requests_ask(world):
    world.run(world.classifier(request_options={"top_p": 0.5}))
    (one,) = world.server.batches.values()
    body = one.lines[0]["body"]
    assert body["top_p"] == 0.5
    assert body["response_format"]["type"] == "json_schema"
    assert {line["url"] for line in one.lines} == {"/v1/chat/completions"}
    assert one.body["metadata"].keys() == {"skllm_ray_key"}


def test_a_parameter_that_the_server_refuses_is_learnt_from_one_request(world):
    def answer(body: dict[str, Any]) -> Any:
        if "top_k" in body:
            return StatusFault(400, "Unrecognized request argument supplied: top_k", None, "top_k")
        return default_answer(body)

    world.server.answer = answer
    with pytest.warns(SkllmRayWarning, match="top_k"):
        world.run(world.classifier(request_options={"extra_body": {"top_k": 3}}))
    world.check_home()
    assert not any("top_k" in line["body"] for one in world.server.batches.values() for line in one.lines)


ODD = {
    BatchFault.NULL_IDS: 1,
    BatchFault.EXPIRED: 2,
    BatchFault.EXPIRED_SILENTLY: 2,
    BatchFault.EXPIRED_UNDONE: 2,
    BatchFault.ALL_FAILED: 2,
    BatchFault.ERROR_IN_BODY: 2,
    BatchFault.DOUBLE_LINES: 1,
    BatchFault.FOREIGN_LINES: 1,
}
"""What may go wrong with a batch, and how many batches it then takes."""


@pytest.mark.filterwarnings("ignore:The batch")
@pytest.mark.parametrize("fault", ODD)
def test_whatever_a_provider_makes_of_a_batch_all_rows_come_home_once(world, fault):
    world.server.batch_faults.append(fault)
    result = world.run()
    world.check_home()
    assert (result.complete, len(world.server.batches)) == (True, ODD[fault])
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert result.unknown_usd == 0


@pytest.mark.parametrize("fault", [BatchFault.LOST_LINES, BatchFault.NO_FILES, BatchFault.DELETED])
def test_what_may_be_paid_for_and_does_not_come_is_an_error_and_asked_again_when_that_is_wanted(world, fault):
    world.server.batch_faults.append(fault)
    with pytest.warns(SkllmRayWarning, match="no result for"):
        result = world.run()
    kinds = read(world.output)["error_kind"].value_counts()
    assert result.complete
    assert kinds.to_dict() == {"malformed_response": 12 if fault is BatchFault.LOST_LINES else N - 1}
    assert max(world.server.lines_sent.values()) == 1
    assert result.total.cost_usd + result.unknown_usd >= world.paid_usd
    again = world.run(retry_errors=True)
    assert again.errors == {}
    assert again.total.cost_usd + again.unknown_usd >= world.paid_usd
    assert read(world.output)["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(N)]


@pytest.mark.parametrize("told", [None, {"completed": 0}, {"total": 0, "completed": 0, "failed": 0}])
def test_that_no_line_ran_is_believed_only_of_a_provider_that_counts_the_lines(world, monkeypatch, told):
    real = provider_batches.Batch.described
    monkeypatch.setattr(provider_batches.Batch, "described", lambda self: {**real(self), "request_counts": told})
    world.server.batch_faults.append(BatchFault.EXPIRED_UNDONE)
    with pytest.warns(SkllmRayWarning, match="no result for"):
        result = world.run()
    assert (result.errors, len(world.server.batches)) == ({"malformed_response": N - 1}, 1)


@pytest.mark.parametrize(("status", "deadline"), [("expired", None), ("cancelled", "8h")])
def test_what_an_ended_batch_names_late_is_waited_for_and_not_paid_again(world, monkeypatch, status, deadline):
    real = provider_batches.Batch.described
    looks: list[str] = []

    def late(self: provider_batches.Batch) -> dict[str, Any]:
        told = real(self)
        looks.extend([status] * (self.status == status))
        if self.status != status or len(looks) > 2:
            return told
        counts = {**told["request_counts"], "completed": 0}
        return {**told, "request_counts": counts, "output_file_id": None, "error_file_id": None}

    monkeypatch.setattr(provider_batches.Batch, "described", late)
    world.server.batch_faults.append(BatchFault.EXPIRED if deadline is None else BatchFault.STUCK)
    if deadline is not None:
        monkeypatch.setattr(Deadline, "is_due", lambda self, rows_left, live, flex: bool(world.server.batches))
    result = world.run(deadline=deadline)
    world.check_home()
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)


def test_what_a_cancelled_batch_did_not_begin_is_asked_directly(world, monkeypatch):
    world.server.batch_faults.append(BatchFault.EXPIRED_UNDONE)
    monkeypatch.setattr(Deadline, "is_due", lambda self, rows_left, live, flex: bool(world.server.batches))
    result = world.run(deadline="8h")
    world.check_home()
    assert [one.status for one in world.server.batches.values()] == ["cancelled"]
    assert world.server.bill.requests == {"standard": N}
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert result.unknown_usd == 0


def test_rows_that_fail_for_good_are_errors_of_their_own_and_cost_nothing(world):
    def answer(body: dict[str, Any]) -> Any:
        return StatusFault(400, "too long", "context_length_exceeded") if "number 7" in prompt_of(body) else "good"

    world.server.answer = answer
    result = world.run()
    found = read(world.output)
    assert result.errors == {"context_length": 1}
    assert found["id"][found["error_kind"].notna()].tolist() == [7]
    assert "too long" in found["error"][7]
    assert len(world.server.batches) == 1  # nobody asked it again
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)


def test_a_request_that_batches_fail_three_times_is_asked_directly(world):
    world.server.batch_faults.extend([BatchFault.EXPIRED] * 9)
    result = world.run()
    world.check_home()
    assert world.server.bill.requests["standard"] > 1
    assert len(world.server.batches) == 3
    assert max(world.server.lines_sent.values()) == 3
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)


def test_batches_that_bring_nothing_end_the_run_and_the_next_goes_on(world):
    world.server.batch_faults.extend([BatchFault.INVALID])
    result = world.run()
    assert (result.complete, result.stopped[:5]) == (False, "fatal")
    assert "A line is not valid" in result.stopped
    assert world.run().complete
    world.check_home()


def test_one_row_no_text_and_twice_the_same(world):
    world.source = write(world.folder / "in.parquet", ["good", None, "good", "bad 🙂\u2028", "x" * 1000 + " good", ""])
    result = world.run()
    assert result.errors == {"missing_text": 2}
    assert read(world.output)["prediction"].fillna("").tolist() == ["good", "", "good", "bad", "good", ""]
    assert sum(world.server.bill.charged.values()) == 3


def test_answers_that_tell_no_tokens_count_as_the_most_that_they_may_cost(world, monkeypatch):
    told = provider_batches.answer_to

    def silent(*given: Any) -> Any:
        status, body = told(*given)
        return status, {**body, "usage": {}}

    monkeypatch.setattr("skllm_ray.testing.batch_server.answer_to", silent)
    result = world.run(budget_usd=1.0, max_output_tokens=50)
    (record,) = world.records
    assert result.complete
    assert result.unknown_usd >= record.spec.most_usd > 0


def test_probabilities_come_by_batch(world):
    world.run()
    assert read(world.output)["probability"].tolist() == pytest.approx([0.8] * N)


# --- limits -------------------------------------------------------------------------------------------------------


def test_files_are_as_large_as_the_provider_takes_them(world, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.provider_batches.BatchApi.limits", FileLimits(max_lines=25))
    world.run()
    world.check_home()
    assert sorted(len(one.lines) for one in world.server.batches.values()) == [9, 25, 25]


def test_a_full_queue_is_waited_for(world):
    world.server.enqueued_tokens = 1200
    result = world.run()
    world.check_home()
    assert result.complete
    assert all(one.status in {"completed", "failed"} for one in world.server.batches.values())
    assert len(world.server.batches) < 20


def test_a_record_holds_the_price_that_was_agreed_on():
    price = Price(2.5, 15.0, 0.25, long=Price(5.0, 22.5, 0.5), long_above=272_000)
    spec = BatchSpec(service="openai", model="m", content_sha256="", nonce="", price=at_tier(price, "batch"))
    again = ProviderBatch.from_json(ProviderBatch(spec=spec).to_json()).spec
    assert again == spec
    assert again.price.cost_usd(300_000, 0) == pytest.approx(0.75)


def test_what_the_queue_takes_is_learnt():
    def batch_of(tokens: int, error: str = "") -> ProviderBatch:
        spec = BatchSpec(service="openai", model="m", content_sha256="", nonce="", tokens=tokens)
        return ProviderBatch(spec=spec, error=error)

    limit = QueueLimit()
    assert limit.room([]) is None
    limit.refused(batch_of(1_000_000, "Enqueued token limit reached for m in o. Limit: 90,000 enqueued tokens."), [])
    assert limit.room([batch_of(50_000)]) == 22_000
    limit.refused(batch_of(10_000, "Too many."), [batch_of(50_000)])
    assert limit.room([]) == 30_000


def test_what_a_live_batch_may_cost_counts_as_spent(world, monkeypatch):
    options = {"budget_usd": 0.006, "max_output_tokens": 50}
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.run(**options)
    given = {"delivery": "batch", "unit_rows": 20, **PRICES, **options}
    stands = batch.job_for(world.classifier(), world.source, world.output, **given).result()
    (record,) = world.records
    assert 0 < record.spec.n_lines < N - 1
    assert stands.set_aside_usd == pytest.approx(record.spec.most_usd)
    assert 0 < stands.total.cost_usd + stands.set_aside_usd <= 0.006
    assert stands.unknown_usd == 0


@pytest.mark.parametrize("budget_usd", [0.0025, 0.006])
def test_no_budget_is_passed_and_it_suffices_for_what_it_covers(world, budget_usd):
    result = world.run(budget_usd=budget_usd, max_output_tokens=50)
    assert world.paid_usd <= budget_usd
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert len(world.server.batches) > 1  # what one has not used is there for the next
    assert result.out_of_budget != result.complete
    if not result.complete:
        assert world.run(budget_usd=1.0, max_output_tokens=50).complete
    world.check_home()


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_server_without_batches_is_refused_before_anything_is_sent(world):
    world.server.has_batches = False
    with pytest.raises(NotSupportedError, match="has no batches"):
        world.run()
    assert not world.server.bill.requests


def test_a_model_without_batches_is_refused(world):
    with pytest.raises(NotSupportedError, match="delivery='batch'"):
        world.run(classifier(), input_price=None, output_price=None, batch_price_share=None)


def test_another_tier_does_not_go_with_batches(world):
    with pytest.raises(ConfigurationError, match="service_tier='flex'"):
        world.run(world.classifier(request_options={"service_tier": "flex"}))


def test_options_that_cannot_be_are_named(world):
    for name, value in (("delivery", "post"), ("batch_price_share", 2.0)):
        with pytest.raises(ConfigurationError, match=name):
            world.run(**{name: value})


def test_asking_directly_is_refused_while_a_batch_may_bring_the_answers(world):
    world.server.batch_faults.append(BatchFault.STUCK)
    interrupt_when(world, lambda: any(one.status == "in_progress" for one in world.server.batches.values()))
    with pytest.raises(KeyboardInterrupt):
        world.run()
    asked = world.server.bill.requests.copy()
    with pytest.raises(InputError, match="1 batches whose answers are not home"):
        world.run(delivery="direct")
    assert world.server.bill.requests == asked
    (one,) = world.server.batches.values()
    one.fault = None
    assert world.run().complete
    world.check_home()
    assert world.run(delivery="direct").complete


def interrupt_when(world: World, ready: Any) -> None:
    """Press Ctrl-C as soon as something is so."""
    import signal

    def wait() -> None:
        while not ready():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


# --- who dies -----------------------------------------------------------------------------------------------------

STEPS = (
    "drafted",
    "start",
    "intent",
    "looked",
    "uploaded",
    "posting",
    "posted",
    "recorded",
    "line",
    "collected",
    "noted",
)
"""What an order and its collection go through."""


@pytest.mark.parametrize("step", STEPS)
def test_a_driver_that_dies_anywhere_leaves_a_job_that_goes_on_and_pays_once(world, monkeypatch, step):
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Death):
            world.run()
    if step == "posting":  # nobody can know whether it was sent
        with pytest.raises(AmbiguousSubmission, match="skllm-ray batches adopt") as told:
            world.run()
        assert len(world.server.batches) == 0
        batch.forget_batch(world.output, told.value.key)
    assert world.run().complete
    world.check_home(n_files=step == "posting")  # who forgets a batch leaves all that is at the provider
    assert len(world.server.batches) == 1
    assert world.server.n_submissions == 1


TAKEN = {SubmitFault.DROP_AFTER, SubmitFault.ERROR_AFTER, SubmitFault.HTML_AFTER, SubmitFault.LATE, SubmitFault.SLOW}


@pytest.mark.parametrize("fault", SubmitFault)
def test_a_post_whose_answer_is_lost_is_never_sent_again(world, fault):
    world.server.submit_faults.append(fault)
    world.server.late_s = world.server.slow_s = 0.1
    if fault in TAKEN:
        assert world.run().complete
    elif fault in {SubmitFault.REFUSED, SubmitFault.FORBIDDEN}:
        assert "refused the batch" in world.run().stopped
        assert world.run().complete
    else:
        for _ in range(2):
            with pytest.raises(AmbiguousSubmission) as told:
                world.run()
            assert (world.server.n_submissions, len(world.server.batches)) == (1, 0)
        batch.forget_batch(world.output, told.value.key)
        assert world.run().complete
    world.check_home(n_files=fault in {SubmitFault.DROP_BEFORE, SubmitFault.ERROR_BEFORE})
    assert len(world.server.batches) == 1


def test_a_lost_record_is_told_and_not_paid_again(world, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.run()
    records = Path(world.output) / SYSTEM / "batches"
    records.rename(world.folder / "elsewhere")
    with pytest.raises(JobFailedError, match="The record of the batch batch_1 is missing"):
        world.run()
    (world.folder / "elsewhere").rename(records)
    (damaged,) = [path for path in records.rglob("*.json") if path.name == "00000003.json"]
    told = damaged.read_bytes()
    damaged.write_bytes(told[:20])
    with pytest.raises(ConfigurationError, match="is damaged"):
        world.run()
    damaged.write_bytes(told)
    assert world.run().complete
    world.check_home()
    assert len(world.server.batches) == 1


def test_a_limit_that_cuts_a_unit_while_its_batch_is_live_loses_no_answer(world, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.run()
    assert world.run(limit=30).rows_done == 30
    assert world.run().complete
    world.check_home()


def test_a_key_that_is_taken_no_more_ends_the_run_and_the_next_goes_on(world, monkeypatch):
    def refuse(*given: Any, **more: Any) -> Any:
        return error_response(401, "Incorrect API key provided.")

    world.server.batch_faults.append(BatchFault.STUCK)
    with monkeypatch.context() as patch:
        patch.setattr(BatchServer, "_get", refuse)
        with pytest.raises(ConfigurationError, match="Check the key"):
            world.run()
    next(iter(world.server.batches.values())).fault = None
    assert world.run().complete
    world.check_home()


def test_a_provider_that_is_away_is_asked_again(world, monkeypatch):
    looks: list[int] = []
    real = BatchServer._get

    def sometimes(self: BatchServer, *given: Any, **more: Any) -> Any:
        looks.append(len(looks))
        return error_response(503, "Try later.") if len(looks) in {2, 3} else real(self, *given, **more)

    monkeypatch.setattr(BatchServer, "_get", sometimes)
    assert world.run().complete
    world.check_home()
    assert len(looks) > 4


# --- a deadline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [BatchFault.STUCK, None])
def test_what_batches_do_not_bring_in_time_is_asked_directly_once_they_are_cancelled(world, monkeypatch, fault):
    world.server.batch_faults.append(fault)
    monkeypatch.setattr(Deadline, "is_due", lambda self, rows_left, live, flex: bool(world.server.batches))
    result = world.run(deadline="8h")
    world.check_home()
    assert result.complete
    assert (len(world.server.batches), next(iter(world.server.batches.values())).status) == (1, "cancelled")
    assert world.server.bill.requests == {"batch": 29, "standard": 31}
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)


def test_without_time_all_is_asked_directly(world):
    assert world.run(deadline="0").complete
    world.check_home()
    assert world.server.bill.requests == {"standard": N}


def test_a_deadline_leaves_the_time_that_asking_directly_takes():
    now = time.time()
    assert not Deadline(now + 1000, rows_per_s=10).is_due(5000, live=False)
    assert Deadline(now + 600, rows_per_s=10).is_due(5000, live=False)
    assert Deadline(now + 1000, rows_per_s=10).is_due(5000, live=True)  # to cancel a batch takes time


def test_deadlines_that_cannot_be_are_refused(world):
    for options, told in (
        ({"deadline": "soon"}, "'8h'"),
        ({"deadline": "8h", "delivery": "direct"}, "without batches"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            world.run(**options)


# --- other jobs ---------------------------------------------------------------------------------------------------


def test_vectors_come_by_batch(world):
    SKLLMConfig.set_gpt_url(world.server.url)
    result = world.run(GPTVectorizer(model="custom_url::m").fit())
    direct = batch.run(GPTVectorizer(model="custom_url::m").fit(), world.source, str(world.folder / "direct"))
    assert result.complete and direct.complete
    found, expected = read(world.output)["embedding"], read(world.folder / "direct")["embedding"]
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))
    (one,) = world.server.batches.values()
    assert {line["url"] for line in one.lines} == {"/v1/embeddings"}
    assert len(one.lines) == N - 1


def test_each_step_of_a_plan_has_batches_of_its_own(world):
    SKLLMConfig.set_gpt_url(world.server.url)
    few = DynamicFewShotGPTClassifier(
        model="custom_url::m", vectorizer=GPTVectorizer(model="custom_url::e"), n_examples=1, on_error="coerce"
    ).fit(["a good one", "an awful one"], ["good", "bad"])
    world.server.batches.clear()
    result = world.run(few)
    assert result.complete and not result.errors
    asked = [(one.body["endpoint"], len(one.lines)) for one in world.server.batches.values()]
    assert asked == [("/v1/embeddings", N), ("/v1/chat/completions", N - 1)]


def test_azure_is_asked_by_batch_alone(world):
    SKLLMConfig.set_openai_key("k")
    SKLLMConfig.set_azure_api_base(world.server.root)
    SKLLMConfig.set_azure_api_version("2024-10-21")
    made = ZeroShotGPTClassifier(model="azure::deployment", on_error="coerce").fit(None, LABELS)
    world.server.batch_faults.append(BatchFault.EXPIRED)
    assert world.run(made).complete
    world.check_home()
    assert world.server.bill.requests == {"batch": N}
    assert {line["url"] for line in next(iter(world.server.batches.values())).lines} == {"/chat/completions"}


def test_answers_of_the_reply_cache_are_in_no_batch(world):
    SKLLMConfig.set_reply_cache(world.folder / "cache.sqlite")
    batch.run(world.classifier(), world.source, str(world.folder / "other"), limit=20, unit_rows=20)
    world.run()
    world.check_home()
    assert [len(one.lines) for one in world.server.batches.values()] == [N - 20]


def test_files_stay_at_the_provider_where_that_is_wanted(world):
    world.run(keep_remote_files=True)
    assert len(world.server.files) == 2


def test_no_key_and_no_text_stands_in_what_the_delivery_writes(world):
    SKLLMConfig.set_openai_key("sk-secret-123456")
    world.run()
    held = b"".join(path.read_bytes() for path in Path(world.output).rglob("*") if path.suffix == ".json")
    assert b"sk-secret" not in held
    assert b"number 5" not in held
    assert pq.read_schema(next(Path(world.output).glob("part-*"))).names[:2] == ["id", "text"]


def test_a_shared_actor_that_dies_while_units_are_gathered_is_no_fault_of_the_job(world, monkeypatch):
    from skllm_ray.batch.delivery.queue import UnitQueue
    from skllm_ray.errors import ClusterError

    def save(self, output):
        raise ClusterError("The job's ledger has died.")

    with monkeypatch.context() as patch, pytest.raises(ClusterError, match="has died"):
        patch.setattr(UnitQueue, "save", save)
        world.run()
    world.run()
    world.check_home()
    assert len(world.server.batches) == 1
