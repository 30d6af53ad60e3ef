"""What else goes by batch than rows, and what of a batch job does not: the labels' prior, a sample, caches, flex."""

from __future__ import annotations

from typing import Any

import pytest

from skllm_ray import batch
from skllm_ray.batch.delivery.deadline import Deadline
from skllm_ray.classification import CascadeClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.tasks.prior import CONTENT_FREE
from skllm_ray.testing.batch_server import BatchFault
from tests.batch.delivery_worlds import PRICES, Death, N, World, die_at
from tests.batch.worlds import LABELS, read, texts, write


def azure(world: World, **params: Any) -> ZeroShotGPTClassifier:
    SKLLMConfig.set_openai_key("k")
    SKLLMConfig.set_azure_api_base(world.server.root)
    SKLLMConfig.set_azure_api_version("2024-10-21")
    return ZeroShotGPTClassifier(model="azure::strong", on_error="coerce", **params).fit(None, LABELS)


def test_a_labels_prior_is_asked_by_batch_and_once(world, monkeypatch):
    clf = world.classifier(label_prior="uniform")
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.run(clf)
    assert [len(one.lines) for one in world.server.batches.values()] == [len(CONTENT_FREE) - 1]
    result = world.run(clf)
    assert result.complete
    assert world.server.bill.requests == {"standard": 1, "batch": N + len(CONTENT_FREE) - 1}
    assert set(world.server.bill.charged.values()) == {1}
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert read(world.output)["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(N)]


def test_a_sample_is_asked_by_batch_also_of_a_deployment_that_takes_nothing_else(world):
    n = 150
    world.source = write(world.folder / "in.parquet", texts(n))
    cascade = CascadeClassifier(
        world.classifier(), azure(world), max_disagreement=0.2, n_samples=60, n_repeats=5, audit_share=0.0
    )
    SKLLMConfig.set_price("custom_url::m", input_per_million=1.0, output_per_million=2.0)
    result = world.run(cascade)
    found = read(world.output)
    assert (result.complete, result.errors) == (True, {})
    assert found["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(n)]
    directly = world.server.bill.requests["standard"]
    assert directly == 1  # the first of the fast model's
    assert (found["stage"] == "sample").sum() == 60
    assert result.promise["certificate"]["n_repeated"] == 5 if "certificate" in result.promise else True


def test_what_came_by_batch_is_in_the_reply_cache(world):
    SKLLMConfig.set_reply_cache(world.folder / "cache.sqlite")
    clf = world.classifier()
    world.run(clf)
    world.check_home()
    asked = world.server.bill.requests.copy()
    direct = batch.run(clf, world.source, str(world.folder / "direct"), **{**PRICES, "batch_price_share": None})
    assert (direct.complete, direct.total.cost_usd) == (True, 0.0)
    assert clf.predict(texts(N)).tolist() == ["good" if i % 3 else "bad" for i in range(N)]
    assert world.server.bill.requests == asked


@pytest.fixture
def flexible(world: World, monkeypatch: pytest.MonkeyPatch) -> ZeroShotGPTClassifier:
    """A model of OpenAI's that has a flex tier, and a batch that does not end."""
    monkeypatch.setenv("OPENAI_BASE_URL", world.server.url)
    SKLLMConfig.set_openai_key("k")
    world.server.batch_faults.append(BatchFault.STUCK)
    return ZeroShotGPTClassifier(model="gpt-5.4-mini", on_error="coerce").fit(None, LABELS)


def due_with_a_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "is_due", lambda self, rows_left, live, flex: flex and bool(world.server.batches))


def test_what_is_asked_directly_goes_by_flex_where_the_deadline_leaves_time(world, flexible, monkeypatch):
    due_with_a_batch(world, monkeypatch)
    result = world.run(flexible, deadline="8h")
    world.check_home()
    assert world.server.bill.requests == {"standard": 1, "batch": 29, "flex": 30}
    paid = world.server.bill.usd(1.0, 2.0, {"batch": 0.5, "flex": 0.5})
    assert result.total.cost_usd == pytest.approx(paid, abs=1e-9)


def test_what_flex_does_not_do_in_time_is_asked_at_the_standard_price(world, flexible, monkeypatch):
    due_with_a_batch(world, monkeypatch)
    looks: list[int] = []

    def is_late(self: Deadline, rows_left: int) -> bool:
        looks.append(rows_left)
        return len(looks) > 2

    monkeypatch.setattr(Deadline, "is_too_late_for_flex", is_late)
    result = world.run(flexible, deadline="8h")
    world.check_home()
    asked = world.server.bill.requests
    assert (result.complete, asked["batch"], asked["standard"] + asked["flex"]) == (True, 29, 31)
    assert asked["standard"] > 1
    assert asked["flex"] > 0


def test_without_time_nothing_goes_by_flex(world, flexible):
    assert world.run(flexible, deadline="0").complete
    assert world.server.bill.requests == {"standard": N}
