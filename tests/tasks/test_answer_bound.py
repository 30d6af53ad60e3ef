"""How long an answer can be: no whole one is longer than its bound, and nothing without end is let through for long."""

from __future__ import annotations

import json
from typing import Any, Literal, Optional

import pytest
from pydantic import BaseModel

from skllm_ray.tasks import CoTTask, ExtractionTask, NERTask, Span, TextTask, ZeroShotTask, tagged
from skllm_ray.tasks.answer_bound import FREE_TEXT, of_schema, tokens
from skllm_ray.tasks.extraction import strict

TEXT = "My card 4929 was charged 3.20 EUR and 17 USD in Köln on May 3rd, says Ann to Bob."


class Item(BaseModel):
    name: str
    price: float
    currency: Literal["EUR", "USD"] | None


class Order(BaseModel):
    customer: str
    urgent: bool
    items: list[Item]
    by_day: dict[str, int]
    notes: Optional[str]  # noqa: UP045  both spellings


class Nested(BaseModel):
    inside: Optional[Nested]  # noqa: UP045


def bound_of(model: type[BaseModel], text: str = TEXT) -> int | None:
    task = ExtractionTask(strict(model.model_json_schema()), dict)
    return task.render([text])[0].answer_bound


def test_whole_answers_are_within_it_however_they_are_laid_out():
    items = [{"name": word, "price": -12345.678901234567, "currency": "EUR"} for word in TEXT.split()]
    days = dict.fromkeys(TEXT.split(), 10**12)
    order: dict[str, Any] = {"customer": TEXT, "urgent": False, "items": items, "by_day": days, "notes": TEXT * 3}
    for written in (json.dumps(order), json.dumps(order, indent=2, ensure_ascii=False)):
        assert len(written) / 2 < bound_of(Order)  # two bytes a token, where four are usual


@pytest.mark.parametrize("text", ["", "x", "東京" * 50, "word " * 2000], ids=len)
def test_it_grows_with_the_text_and_is_never_far_from_it(text):
    found = bound_of(Order, text)
    assert found >= 2 * FREE_TEXT
    assert found < 6000 + 60 * len(json.dumps(text))


def test_closed_fields_have_a_close_bound():
    class Closed(BaseModel):
        label: Literal["a", "b"]
        n: int
        sure: bool

    assert bound_of(Closed) < 300


def test_a_form_that_may_hold_itself_has_none():
    assert bound_of(Nested) is None
    assert tokens(None, TEXT) is None


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "string"}, {"const": 1}]},
        {"allOf": [{"type": "integer"}]},
        {"type": "array"},
        {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
        {"type": "object", "properties": {"x": True}},
        {"$ref": "#/$defs/missing"},
    ],
)
def test_any_schema_has_a_bound(schema):
    assert 0 < tokens(of_schema(schema), TEXT) < 5000


def test_entities_are_no_longer_than_the_text_with_all_of_it_marked():
    words = TEXT.split()
    types = {"PERSON": "a person", "AMOUNT": "money"}
    starts = [sum(len(one) + 1 for one in words[:i]) for i in range(len(words))]
    spans = [Span(at, at + len(word), "PERSON", word, "it is a name") for at, word in zip(starts, words, strict=True)]
    dense, sparse = (NERTask(types, sparse=sparse).render([TEXT])[0].answer_bound for sparse in (False, True))
    assert len(tagged(TEXT, spans)) < dense < 5000
    listed = json.dumps({"entities": [{"reasoning": "a name", "tag": "PERSON", "value": word} for word in words]})
    assert len(listed) / 2 < sparse < 5000


def test_an_explained_label_has_one_and_free_texts_have_none():
    assert CoTTask(("a", "b")).render([TEXT])[0].answer_bound >= FREE_TEXT
    assert TextTask("{x}").render([TEXT])[0].answer_bound is None
    assert ZeroShotTask(("a", "b")).render([TEXT])[0].answer_bound is None  # that of its labels
