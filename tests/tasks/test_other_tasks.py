"""Few-shot, chain of thought, texts, extraction: what is asked, and what becomes of the answers."""

from __future__ import annotations

import itertools
import json
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel

from skllm_ray.memory import SklearnMemoryIndex
from skllm_ray.tasks import (
    CoTTask,
    DynamicFewShotTask,
    ExtractionTask,
    FewShotTask,
    MultiLabelCoTTask,
    Reply,
    TextTask,
)
from skllm_ray.tasks.extraction import strict
from skllm_ray.tasks.few_shot import ExampleMemory, format_examples


def prompt(request):
    return request.messages[-1]["content"]


def test_examples_cannot_leave_their_fences_and_the_text_comes_last():
    task = FewShotTask(("a", "b"))
    data = "\n\n".join(format_examples(["x ``` {labels}", "y"], ["a", "b"], task.choices))
    shown = prompt(FewShotTask(("a", "b"), training_data=data).render(["the text"])[0])
    assert "````\nx ``` {labels}\n````\nAnswer: " in shown
    assert shown.endswith("\n```\nthe text\n```")


def memory(vectors, members):
    indexes = []
    for rows in members:
        index = SklearnMemoryIndex()
        for row in rows:
            index.add(vectors[row])
        index.build()
        indexes.append(index)
    examples = tuple(f"example {i}" for i in range(len(vectors)))
    return ExampleMemory(examples, tuple(indexes), tuple(np.asarray(rows) for rows in members))


def test_each_class_gives_its_nearest_and_small_classes_all():
    vectors = np.asarray([[0, 0], [1, 0], [9, 9], [5, 5], [0, 1]], np.float32)
    found = memory(vectors, [[0, 1, 2, 4], [3]])
    assert [set(row) for row in found.nearest(vectors[[2, 0]], 2)] == [{2, 1, 3}, {0, 1, 3}] or [
        set(row) for row in found.nearest(vectors[[2, 0]], 2)
    ] == [{2, 4, 3}, {0, 1, 3}]


def test_the_order_of_examples_is_one_for_all_rows_and_makes_prompts_begin_alike():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 4)).astype(np.float32)
    plain = memory(vectors, [list(range(30)), list(range(30, 60))])
    ordered = plain.with_order(vectors, 3)
    queries = generator.normal(size=(200, 4)).astype(np.float32)
    rows = ordered.nearest(queries, 3)
    assert [set(row) for row in rows] == [set(row) for row in plain.nearest(queries, 3)]
    place = {example: position for position, example in enumerate(np.argsort(ordered.order))}
    assert all([place[e] for e in row] == sorted(place[e] for e in row) for row in rows)
    assert rows[:5] == ordered.nearest(queries[:5], 3)  # a row's prompt does not depend on the others of its block

    def shared(rows):
        rows = sorted(rows)
        pairs = itertools.pairwise(rows)
        return sum(
            next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0])) for pair in pairs
        )

    assert shared(rows) > shared(plain.nearest(queries, 3))


def test_a_dynamic_prompt_needs_examples():
    with pytest.raises(ValueError, match="memory of examples"):
        DynamicFewShotTask(("a", "b")).render(["t"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"explanation": "why", "label": "a"}', ("a", "why")),
        ('Well: {"label": "A", "explanation": null}', ("a", "")),
        ('{"explanation": "why", "label": "c"}', None),
        ("a", None),
    ],
)
def test_explanations(text, value):
    row = CoTTask(("a", "b")).parse(["t"], [Reply(text)])[0]
    assert (row.value, row.valid) == (value, value is not None)


def test_several_labels_are_explained():
    task = MultiLabelCoTTask(("a", "b"), max_labels=1)
    assert task.parse(["t"], [Reply('{"explanation": "e", "label": ["b", "a"]}')])[0].value == (("b",), "e")
    schema = task.render(["t"])[0].json_schema
    assert list(schema["properties"]) == ["explanation", "label"]  # it reasons before it chooses
    assert schema["properties"]["label"]["items"]["enum"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" ok ", "ok"),
        ("```\nok\n```", "ok"),
        ("```text\nok\n```", "ok"),
        ("a ```b``` c", "a ```b``` c"),
        ("```ok```", "ok"),
        ("```a``` and ```b```", "```a``` and ```b```"),
        ("  ", None),
    ],
)
def test_texts_lose_the_fence_around_them_alone(text, value):
    row = TextTask("{x}").parse(["t"], [Reply(text)])[0]
    assert (row.value, row.valid) == (value, value is not None)


class Line(BaseModel):
    """A part of an order."""

    item: str
    size: Literal["s", "m"] = "s"


class Order(BaseModel):
    """An order."""

    title: str
    lines: list[Line] = []
    note: str | None = None


def test_schemas_are_made_strict_all_the_way_down():
    schema = strict(Order.model_json_schema())
    assert schema["required"] == ["title", "lines", "note"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Line"]["required"] == ["item", "size"]
    assert "default" not in json.dumps(schema)
    assert "title" in schema["properties"]  # a field's name is no keyword


def test_extraction_checks_what_it_is_told():
    task = ExtractionTask(strict(Order.model_json_schema()), lambda answer: Order.model_validate(answer).model_dump())
    good, wrong, none = task.parse(
        ["t"] * 3, [Reply('{"title": "x", "lines": [{"item": "y"}]}'), Reply('{"title": 5}'), Reply("sorry")]
    )
    assert good.value == {"title": "x", "lines": [{"item": "y", "size": "s"}], "note": None}
    assert (wrong.valid, none.valid, none.value) == (False, False, None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>Shorter?\nYes.</think>\n\nIt rained.", "It rained."),
        ("<think>\n\n</think>```\nIt rained.\n```", "It rained."),
        ("Shorter? Yes.</think>It rained.", "It rained."),
        ("<think>Shorter?", None),
        ("<p>It <b>rained</b>.</p>", "<p>It <b>rained</b>.</p>"),
        ("A <think>tag</think> stays.", "A <think>tag</think> stays."),
    ],
)
def test_what_a_model_thought_aloud_is_no_part_of_a_text(answer, text):
    (row,) = TextTask("Shorten: {x}").parse(["x"], [Reply(answer)])
    assert (row.value, row.valid) == (text, text is not None)
