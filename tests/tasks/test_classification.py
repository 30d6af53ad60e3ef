"""Classification tasks: what is asked, and what counts as an answer."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import pytest

from skllm_ray.tasks import Choices, MultiLabelZeroShotTask, Reply, RowError, Task, ZeroShotTask

LABELS = ("positive", "negative", "very good")


def parse(task, text):
    (row,) = task.parse(["text"], [Reply(text)])
    assert row.valid == (row.value is not None)
    return row.value


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "positive"}', "positive"),
        ('{"label":"very good"}', "very good"),
        ('  {\n"label" : "negative"\n}\n', "negative"),
        ('Sure! Here it is:\n```json\n{"label": "negative"}\n```\nAnything else?', "negative"),
        ('{"label": "positive", "reason": "it {shines}"}', "positive"),
        ('{"label": ["positive"]}', "positive"),
        ('{"label": "POSITIVE"}', "positive"),
        ('{"label": " Very \\n Good "}', "very good"),
        ("positive", "positive"),
        ('"Positive".', "positive"),
        ("`negative`\n", "negative"),
        ('<think>maybe {"label": "positive"}?</think>\n{"label": "negative"}', "negative"),
        ("<think>positive? no</think>negative", "negative"),
        ('rather {"label": "positive"}? No.</think>{"label": "negative"}', "negative"),
        ('[THINK]positive?[/THINK]{"label": "negative"}', "negative"),
        ('<think>it must be {"label": "positive"}', None),
        ('{"label": "positive", "why": "</think>"}', "positive"),
        ("**positive**", "positive"),
        ('{"label": "neutral"}', None),
        ('{"label": ["positive", "negative"]}', None),
        ('{"label": []}', None),
        ('{"label": null}', None),
        ('{"label": true}', None),
        ('{"label": {"positive": 1}}', None),
        ('{"answer": "positive"}', None),
        ('["positive"]', "positive"),
        ('{"label": "positive"', None),
        ('{"label": "positive"} or {"label": "negative"}', None),
        ("positive or negative", None),
        ("it is not positive", None),
        ("", None),
        (None, None),
    ],
)
def test_an_answer_is_a_label_or_invalid(text, label):
    assert parse(ZeroShotTask(LABELS), text) == label


@pytest.mark.parametrize(
    ("text", "label"), [("US", "US"), ("us", "us"), ("Us", None), ('{"label": "uS"}', None), ("EU", "eu"), ("eu", "eu")]
)
def test_labels_that_differ_in_case_alone_need_an_exact_answer(text, label):
    assert parse(ZeroShotTask(("US", "us", "eu")), text) == label
    assert parse(ZeroShotTask(("us", "US", "eu")), text) == label


@pytest.mark.parametrize(
    "label", ["U.S.", '"quoted"', "`code`", 'a "b" \\c', "ça 😀", "STRASSE", "{x}", "[1, 2]", "12"]
)
def test_any_label_can_be_answered(label):
    task = ZeroShotTask((label, "other"))
    assert parse(task, task.choices.answer([label])) == label
    assert parse(task, label) == label


def test_a_failed_reply_keeps_its_error():
    error = RowError("timeout", "too late", retryable=True)
    (row,) = ZeroShotTask(LABELS).parse(["text"], [Reply(error=error)])
    assert (row.value, row.valid, row.error) == (None, False, error)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"label": ["positive", "very good"]}', ("positive", "very good")),
        ('{"label": ["Very Good", "positive"]}', ("very good", "positive")),
        ('{"label": ["positive", "POSITIVE", "positive"]}', ("positive",)),
        ('{"label": ["positive", "negative", "very good"]}', ("positive", "negative")),
        ('{"label": ["nonsense", "positive"]}', ("positive",)),
        ('{"label": ["positive", true, null, 1, ["negative"]]}', ("positive",)),
        ('{"label": "negative"}', ("negative",)),
        ('Well: {"label": ["negative"]}!', ("negative",)),
        ('{"label": []}', ()),
        ('{"label": ["nonsense"]}', None),
        ('{"label": [true, false]}', None),
        ('{"label": true}', None),
        ('{"label": {}}', None),
        ('{"label": ["positive"', None),
        ("positive", ("positive",)),
        (None, None),
    ],
)
def test_a_multi_label_answer_is_cleaned_of_what_is_no_label(text, labels):
    assert parse(MultiLabelZeroShotTask(LABELS, max_labels=2), text) == labels


@pytest.mark.parametrize("task", [ZeroShotTask(LABELS), MultiLabelZeroShotTask(LABELS, 2)])
def test_a_task_travels_and_does_not_change(task):
    assert isinstance(task, Task)
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(FrozenInstanceError):
        task.labels = ()


@pytest.mark.parametrize("task", [ZeroShotTask(LABELS[::-1]), MultiLabelZeroShotTask(LABELS[::-1], 2)])
def test_the_prompt_lists_the_labels_in_their_order_and_ends_with_the_text(task):
    requests = task.render(["first {x}", "second"])
    assert [request.choices for request in requests] == [task.choices] * 2
    assert task.choices.labels == LABELS[::-1]
    for request, text in zip(requests, ["first {x}", "second"], strict=True):
        system, user = request.messages
        assert (system["role"], user["role"]) == ("system", "user")
        assert '["very good", "negative", "positive"]' in user["content"]
        assert user["content"].endswith(f"```\n{text}\n```")
    prompts = [request.messages[-1]["content"] for request in requests]
    assert prompts[0].partition("first {x}")[0] == prompts[1].partition("second")[0]


def test_descriptions_stand_in_the_prompt_and_nothing_stands_for_none():
    described = {"negative": "does not work {at all}", "positive": "works"}
    (request,) = ZeroShotTask(LABELS, descriptions=described).render(["t"])
    lines = request.messages[-1]["content"].splitlines()
    at = lines.index("What they mean:")
    assert lines[at + 1 : at + 3] == ['- "positive": works', '- "negative": does not work {at all}']
    assert not any(line.startswith('- "very good"') for line in lines)
    assert "What they mean" not in ZeroShotTask(LABELS).render(["t"])[0].messages[-1]["content"]


def test_a_template_of_ones_own_is_used():
    (request,) = MultiLabelZeroShotTask(("a", "b"), 7, "{max_cats} of {labels}: {x}").render(["t"])
    assert request.messages[-1]["content"] == '7 of ["a", "b"]: t'


@pytest.mark.parametrize(("max_labels", "expected"), [(1, 1), (3, 3), (9, 3)])
def test_no_more_labels_are_asked_for_than_there_are(max_labels, expected):
    assert MultiLabelZeroShotTask(LABELS, max_labels).choices == Choices(LABELS, multiple=True, max_labels=expected)


@pytest.mark.parametrize("choices", [Choices(LABELS), Choices(LABELS, multiple=True, max_labels=2)])
def test_the_schema_allows_the_labels_alone(choices):
    schema = choices.json_schema()
    value = schema["properties"]["label"]
    assert (value["items"] if choices.multiple else value) == {"type": "string", "enum": list(LABELS)}
    assert (schema["required"], schema["additionalProperties"]) == (["label"], False)
    answer = choices.answer(LABELS[:1])
    assert answer.startswith(choices.opening)
    assert json.loads(answer) == {"label": ["positive"] if choices.multiple else "positive"}
