"""What each step of a plan is asked, and what becomes of a row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skllm_ray.config import Price
from skllm_ray.execution.block import process
from skllm_ray.execution.plan import Block, Sampled, Step, Unsure, label_probability, needs_positions, row_step
from skllm_ray.execution.runner import run as run_texts
from skllm_ray.tasks.base import ChatRequest, FollowUpTask, Reply, Row, RowError, Usage
from skllm_ray.tasks.classification import ZeroShotTask
from skllm_ray.tasks.embedding import EmbeddingTask
from skllm_ray.tasks.text import TextTask
from skllm_ray.testing import FakeBackend, FakeSpec

LABELS = ("a", "b")
TASK = ZeroShotTask(LABELS, "{labels} {x}")
SPEC = FakeSpec(str)


@dataclass
class Scripted(FakeBackend):
    """Answers each text with a reply; notes what it was asked."""

    replies: dict[str, Reply]
    asked: list[str] = field(default_factory=list)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        texts = [request.messages[-1]["content"].rpartition(" ")[2] for request in requests]
        self.asked += texts
        return [self.replies[text] for text in texts]


def says(label: str, probability: float = 0.5, cost: float | None = 1.0) -> Reply:
    other = "b" if label == "a" else "a"
    found = {label: probability, other: 1 - probability}
    log_probs = tuple(float(np.log(found[name])) for name in LABELS)
    return Reply(f'{{"label": "{label}"}}', log_probs, Usage(10, 1, cost_usd=cost))


def failed(kind: Any, *, fatal: bool = False) -> Reply:
    return Reply(error=RowError(kind, "no", fatal=fatal))


FIRST = {
    "sure": says("a", 0.9),
    "even": says("a", 0.6),
    "unsure": says("a", 0.55),
    "odd": Reply("something else", usage=Usage(10, 1, cost_usd=1.0)),
    "lost": failed("timeout"),
    "key": failed("authentication", fatal=True),
    "late": failed("cancelled"),
}


def cascade(*takes: Any) -> tuple[Step, Step]:
    return Step(TASK, SPEC, stage="fast"), Step(TASK, SPEC, takes, stage="strong")


def run(plan: tuple[Step, ...], texts: Sequence[str], positions: Sequence[int] | None = None) -> tuple[Any, Scripted]:
    strong = Scripted({text: says("b", 0.7, cost=10.0) for text in texts})
    rows = process(Block(texts, positions), plan, [Scripted(FIRST), strong])
    return dict(zip(texts, rows, strict=True)), strong


def test_a_later_step_takes_what_is_unsure_and_never_what_ends_the_call():
    rows, strong = run(cascade(Unsure(0.6)), list(FIRST))
    assert sorted(strong.asked) == ["even", "lost", "odd", "unsure"]
    assert [rows[text].stage for text in ("sure", "even", "odd")] == ["fast", "strong", "strong"]
    assert (rows["sure"].value, rows["unsure"].value) == ("a", "b")
    assert rows["key"].error.kind == "authentication"
    assert rows["late"].error.kind == "cancelled"
    assert rows["unsure"].replaced.value == "a"
    assert rows["sure"].replaced is None


def test_a_row_costs_what_all_its_steps_cost():
    rows, _ = run(cascade(Unsure(0.6)), ["sure", "unsure", "lost"])
    assert [rows[text].reply.usage.cost_usd for text in ("sure", "unsure", "lost")] == [1.0, 11.0, None]
    assert rows["unsure"].reply.usage.prompt_tokens == 20
    assert [None if one is None else one.cost_usd for one in rows["unsure"].by_step] == [1.0, 10.0]
    assert [None if one is None else one.cost_usd for one in rows["sure"].by_step] == [1.0, None]


def test_what_a_free_model_does_not_tell_is_nothing():
    class Free(FakeSpec):
        @property
        def capabilities(self) -> Any:
            from dataclasses import replace

            return replace(super().capabilities, price=Price(0.0))

    plan = (Step(TASK, Free(str)), Step(TASK, SPEC, (Unsure(0.6),)))
    rows = process(Block(["x"]), plan, [Scripted({"x": says("a", 0.5, None)}), Scripted({"x": says("b", 0.9, 2.0)})])
    assert rows[0].reply.usage.cost_usd == 2.0
    plan = (Step(TASK, SPEC), Step(TASK, Free(str), (Unsure(0.6),)))
    rows = process(Block(["x"]), plan, [Scripted({"x": says("a", 0.5, 3.0)}), Scripted({"x": says("b", 0.9, None)})])
    assert rows[0].reply.usage.cost_usd == 3.0


def test_sampled_rows_are_taken_by_their_positions_and_named_so():
    plan = cascade(Sampled(frozenset({8}), "sample"), Unsure(0.6))
    rows, strong = run(plan, ["sure", "unsure"], [8, 9])
    assert sorted(strong.asked) == ["sure", "unsure"]
    assert (rows["sure"].stage, rows["unsure"].stage) == ("sample", "strong")
    rows, strong = run(plan, ["sure", "unsure"], [7, 8])
    assert strong.asked == ["unsure"]
    assert rows["unsure"].stage == "sample"
    with pytest.raises(ValueError, match="positions"):
        run(plan, ["sure"])
    assert needs_positions(plan)
    assert not needs_positions(cascade(Unsure(0.5)))


def by_position(block: Block) -> Any:
    return np.asarray(block.positions)


def test_of_equal_scores_the_tie_breaker_decides():
    texts = ["even", "sure"]
    for tie, asked in ((5.0, ["even"]), (4.0, [])):
        rows, strong = run(
            cascade(Unsure(label_probability([Row("a", True, FIRST["even"])])[0], tie, by_position)), texts, [5, 6]
        )
        assert strong.asked == asked, tie
    rows, strong = run(cascade(Unsure(-np.inf, tie_breakers=by_position)), ["odd", "unsure"], [5, 6])
    assert strong.asked == ["odd"]  # without a score it is always taken
    assert rows["unsure"].stage == "fast"


@dataclass(frozen=True)
class Checked(TextTask, FollowUpTask):
    """Asks whether what was said before is right."""

    def render_after(self, texts: Sequence[str], rows: Sequence[Row[Any]]) -> list[ChatRequest]:
        return [request for row in rows for request in TextTask("is {x}").render([str(row.value)])]


def test_a_step_that_goes_on_sees_the_rows_and_passes_over_failed_ones():
    plan = (Step(TASK, SPEC), Step(Checked("{x}"), SPEC))
    second = Scripted({"a": Reply("yes", usage=Usage(1, 1, cost_usd=5.0))})
    rows = process(Block(["sure", "lost", "odd"]), plan, [Scripted(FIRST), second])
    assert second.asked == ["a"]
    assert [row.value for row in rows] == ["yes", None, None]
    assert rows[0].replaced is None  # it goes on from the answer, and takes no one's place
    assert rows[0].reply.usage.cost_usd == 6.0
    assert rows[1].error.kind == "timeout"
    assert (rows[2].error, rows[2].valid) == (None, False)


def test_rows_are_counted_where_all_have_an_answer():
    assert row_step((Step(TASK, SPEC),)) == 0
    assert row_step(cascade(Unsure(0.5))) == 0
    assert row_step((Step(EmbeddingTask(), SPEC), Step(TASK, SPEC))) == 1


def test_one_step_is_as_before():
    backend = Scripted(FIRST)
    rows = process(Block(list(FIRST)), (Step(TASK, SPEC),), [backend])
    assert backend.asked == list(FIRST)
    assert rows[0] == Row("a", True, FIRST["sure"])
    assert rows[0].by_step == ()


@pytest.mark.usefixtures("local_mode")
def test_the_way_of_a_calls_texts_goes_straight_down():
    """From `run` to the backend there are few functions, and none of a file that was left before."""
    seen: list[list[str]] = []

    def answer(request: ChatRequest) -> str:
        del request
        frames = [f"{Path(frame.filename).stem}.{frame.function}" for frame in inspect.stack()]
        seen.append(frames[frames.index("runner.run") :: -1])
        return '{"label": "a"}'

    rows = run_texts(["x"], (Step(TASK, FakeSpec(answer)),), show_progress=False)
    assert rows[0].value == "a"
    way = [place for place in seen[0] if place.partition(".")[0] in {"runner", "dataset", "block", "plan"}]
    assert way == ["runner.run", "block.process_here", "block.process", "block._ask"]
