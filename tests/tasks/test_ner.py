"""Where entities stand, however a model writes them."""

from __future__ import annotations

import json
import random

import pytest

from skllm_ray.tasks import NERTask, Reply, Span, tagged, untagged
from skllm_ray.tasks.ner import flat, locate

TYPES = {"PERSON": "a person", "CITY": "a town", "PAPER": "a newspaper"}


def spans_of(text, *entries):
    return [(span.start, span.end, span.tag) for span in locate(text, [(*entry, "") for entry in entries])]


@pytest.mark.parametrize(
    ("text", "entries", "expected"),
    [
        ("Ann met Ann", [("Ann", "PERSON")], [(0, 3, "PERSON"), (8, 11, "PERSON")]),
        ("Annual Ann", [("Ann", "PERSON")], [(7, 10, "PERSON")]),
        ("Annual", [("Ann", "PERSON")], [(0, 3, "PERSON")]),
        ("New York Times of New York", [("New York", "CITY"), ("New York Times", "PAPER")],
         [(0, 14, "PAPER"), (18, 26, "CITY")]),
        ("New York Times", [("New York", "CITY"), ("New York Times", "PAPER")], [(0, 14, "PAPER"), (0, 8, "CITY")]),
        ("Paris, Paris, Paris", [("Paris", "PERSON"), ("Paris", "CITY")],
         [(0, 5, "PERSON"), (7, 12, "CITY"), (14, 19, "CITY")]),
        ("nothing", [("Ann", "PERSON")], []),
        ("ANN  LEE", [("Ann Lee", "PERSON")], [(0, 8, "PERSON")]),
        ("a.b axb", [("a.b", "CITY")], [(0, 3, "CITY")]),
        ("C++ (C)", [("C++", "CITY"), ("(C)", "PAPER")], [(0, 3, "CITY"), (4, 7, "PAPER")]),
        ("Zoë 🎉 Zoë", [("🎉", "CITY")], [(4, 5, "CITY")]),
        ("C++(C) (C)", [("C++", "CITY"), ("(C)", "PAPER")], [(0, 3, "CITY"), (3, 6, "PAPER"), (7, 10, "PAPER")]),
    ],
)  # fmt: skip
def test_places(text, entries, expected):
    assert spans_of(text, *entries) == expected


def test_entities_that_touch_do_not_overlap():
    touching = [Span(0, 3, "CITY", "C++"), Span(3, 6, "PAPER", "(C)")]
    assert flat(touching) == touching
    longer = Span(2, 6, "CITY", "+(C)")
    assert flat([*touching, longer]) == [longer]


def test_what_is_marked_gives_the_text_back_whatever_it_holds():
    pieces = ["<entity>", "</value>", "&", "&lt;", "<not_entity>", "Ann", " ", "\n", "`", "{}", "]]>", "é"]
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choices(pieces, k=12))
        points = sorted(generator.sample(range(len(text) + 1), 4))
        spans = [Span(a, b, "PERSON", text[a:b], "<&>") for a, b in (points[:2], points[2:], points[1:3]) if a < b]
        assert untagged(tagged(text, spans)) == text
        for span in flat(spans):
            assert text[span.start : span.end] == span.value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"entities": []}', []),
        ('[{"tag": "PERSON", "value": "Ann"}]', [(0, 3)]),
        ('```json\n[{"tag": "person", "value": "Ann"}]\n```', [(0, 3)]),
        ('{"entities": [{"tag": "PERSONS", "value": "Ann"}, {"tag": "CITY", "value": ""}, 5, {"value": "Ann"}]}', []),
        ("no JSON", None),
        ('{"entities": "Ann"}', None),
        ("[[[", None),
    ],
)
def test_lists_of_all_kinds_are_read(answer, expected):
    row = NERTask(TYPES).parse(["Ann slept."], [Reply(answer)])[0]
    assert row.valid == (expected is not None)
    assert (None if row.value is None else [(span.start, span.end) for span in row.value]) == expected


def test_a_repeated_text_is_read_place_by_place():
    text = "Ann < Bob, and Ann"
    answer = (
        "<not_entity>Ann &lt; </not_entity><entity><reasoning>r</reasoning><tag>PERSON</tag><value>Bob</value></entity>"
        "<not_entity>, and </not_entity><entity><reasoning>s</reasoning><tag>PERSON</tag><value>Ann</value></entity>"
    )
    row = NERTask(TYPES, sparse=False).parse([text], [Reply(answer)])[0]
    assert [(span.start, span.end, span.reasoning) for span in row.value] == [(6, 9, "r"), (15, 18, "s")]
    assert untagged(tagged(text, row.value)) == text
    assert not NERTask(TYPES, sparse=False).parse([text], [Reply("It has Ann.")])[0].valid


def test_a_repeated_text_that_was_changed_leaves_the_original_whole():
    answer = (
        "<entity><reasoning>r</reasoning><tag>PERSON</tag><value>Ann</value></entity><not_entity> invented</not_entity>"
    )
    text = "Dear Ann,\nhello"
    row = NERTask(TYPES, sparse=False).parse([text], [Reply(answer)])[0]
    assert [(span.start, span.end) for span in row.value] == [(5, 8)]
    assert untagged(tagged(text, row.value)) == text


def test_the_request_names_the_types_and_the_form():
    request = NERTask({'a "b"': "quoted"}).render(["t"])[0]
    assert request.json_schema["properties"]["entities"]["items"]["properties"]["tag"]["enum"] == ['a "b"']
    assert json.dumps('a "b"') in request.messages[-1]["content"]
    assert NERTask(TYPES, sparse=False).render(["t"])[0].json_schema is None
