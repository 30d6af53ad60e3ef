"""Reading an answer plainly: what stands there counts, however a model wraps it. And nothing else does."""

import time
import unicodedata
import warnings

import pydantic
import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.errors import InputError, SkllmRayWarning
from skllm_ray.tasks.answers import read_json
from skllm_ray.tasks.base import Reply
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask
from skllm_ray.tasks.cot import CoTTask
from skllm_ray.tasks.extraction import ExtractionTask, strict
from skllm_ray.tasks.ner import NERTask

TASK = ZeroShotTask(("positive", "negative"))
HARMONY = '<|channel|>analysis<|message|>Is it {"label": "positive"}? No.<|end|><|start|>assistant'


def labelled(text, task=TASK):
    (row,) = task.parse(["x"], [Reply(text)])
    return row.value


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "negative"}',
        '{"label": "negative"} The braces {here} and } there mean nothing.',
        'Between {braces} stands {"label": "negative"}.',
        '{"label": "negative"}\n\n{"confidence": 0.9}',
        'First {"label": "negative"}, then again {"label": "negative"}',
        '{"Label": "negative"}',
        '{"LABEL": "Negative"}',
        '{"label": "**negative**"}',
        '{"label": "negative."}',
        '{"label": ["negative"]}',
        '```json\n{"label": "negative"}\n```',
        "```\nnegative\n```",
        "negative",
        "**negative**",
        "*Negative*.",
        "__negative__",
        "`negative`",
        "\u201cnegative\u201d",
        "\u00ab negative \u00bb",
        "'negative'!",
        "(negative)",
        "- negative",
        "negative\u3002",
        "Label: negative",
        "**Label:** negative.",
        "I weighed it.\nLabel: **negative**",
        HARMONY + '<|channel|>final<|message|>{"label": "negative"}<|return|>',
        HARMONY + '<|channel|>final <|constrain|>json<|message|>{"label": "negative"}',
        HARMONY + "<|channel|>final<|message|>negative<|end|>",
        'analysisPositive or negative? I say so.assistantfinal{"label": "negative"}',
        '<think>{"label": "positive"}</think>{"label": "negative"}',
        '{"label": "negative"}<|im_end|>',
        "negative</s>",
    ],
)
def test_a_label_is_read_however_it_is_wrapped(text):
    assert labelled(text) == "negative"


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", '{"label": null}', '{"label": "neither"}', '{"label": ["positive", "negative"]}', "neg",
        "not negative",
        "positive or negative", '{"answer": "negative"}', '{"label": "posi', HARMONY, "Label: unsure", "{" * 5000, None,
        '{"label": {"label": "negative"}}', 'Such as {"label": "positive"}? No: {"label": "negative"}',
        '{"label": "negative"', '{"label": "positive", "label": "negative"}',
    ],
)  # fmt: skip
def test_what_names_no_label_is_none(text):
    assert labelled(text) is None


def test_labels_that_hold_signs_are_told_by_them():
    task = ZeroShotTask((".NET", "C#", "C", "(none)", "*"))
    for label in task.labels:
        assert labelled(f'{{"label": "{label}"}}', task) == label
        assert labelled(label, task) == label
    assert labelled("**C#**", task) == "C#"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_normal_form_of_an_answer_does_not_matter(form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    label = unicodedata.normalize(form, "d\u00e9\u00e7u")
    assert (
        labelled(unicodedata.normalize(other, '{"label": "d\u00e9\u00e7u"}'), ZeroShotTask((label, "content"))) == label
    )


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"label": ["a", "b"]}', ("a", "b")),
        ('{"Label": ["**a**", "b."]} {see above}', ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("a", ("a",)),
        ('{"label": []}', ()),
        ('{"other": ["a"]}', None),
        ("neither", None),
    ],
)
def test_several_labels_likewise(text, labels):
    assert labelled(text, MultiLabelZeroShotTask(("a", "b", "c"))) == labels


def test_an_explained_label_likewise():
    text = '{"Explanation": "so {it} is", "Label": "negative"} Hope that {helps}!'
    assert labelled(text, CoTTask(("positive", "negative"))) == ("negative", "so {it} is")


def test_an_answer_full_of_braces_takes_no_time():
    began = time.process_time()
    assert read_json('{"a": ' * 50_000) is None
    assert read_json("{x " * 100_000) is None
    assert time.process_time() - began < 5


ENTITIES = NERTask({"PERSON": "people", "PLACE": "places"})


def entities(text, task=ENTITIES):
    (row,) = task.parse(["Ann met Bob in Rome"], [Reply(text)])
    return row


@pytest.mark.parametrize(
    "text",
    [
        '{"entities": [{"reasoning": "", "tag": "PERSON", "value": "Ann"}]}',
        '{"Entities": [{"Tag": "person", "Value": "Ann"}]} {that is all}',
        '[{"tag": "PERSON", "value": "Ann"}]',
        '{"entities": [{"tag": "PERSON", "value": "Ann"}, {"name": "Bob"}]}',
    ],
)
def test_entities_are_read_however_they_are_wrapped(text):
    assert [span.value for span in entities(text).value] == ["Ann"]


@pytest.mark.parametrize(
    "text",
    [
        '{"entities": [{"entity": "Ann", "type": "PERSON"}]}',
        '{"entities": [{"value": "Ann", "label": "PERSON"}]}',
        '{"entities": ["Ann"]}',
        '{"persons": ["Ann"]}',
        '{"entities": {"PERSON": ["Ann"]}}',
        "Ann is a person.",
    ],
)
def test_entities_in_other_words_are_invalid_with_a_reason_and_never_none_found(text):
    row = entities(text)
    assert (row.valid, row.value) == (False, None)
    assert "entities" in row.reason


def test_entities_of_other_types_do_not_count():
    assert entities('{"entities": [{"value": "Ann", "tag": "DATE"}]}').value == ()


def test_no_entities_are_no_entities():
    assert (entities('{"entities": []}').valid, entities('{"entities": []}').value) == (True, ())


def test_marked_entities_without_tags_are_invalid():
    dense = NERTask({"PERSON": "people"}, sparse=False)
    good = "<entity><tag>PERSON</tag><value>Ann</value></entity><not_entity> met Bob in Rome</not_entity>"
    assert entities(good, dense).valid
    assert not entities(good.replace("<tag>PERSON</tag>", ""), dense).valid
    assert entities("<not_entity>Ann met Bob in Rome</not_entity>", dense).value == ()


class Order(pydantic.BaseModel):
    item: str = ""
    number: int = 0


EXTRACTION = ExtractionTask(strict(Order.model_json_schema()), lambda answer: Order.model_validate(answer).model_dump())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"item": "tea", "number": 2}', {"item": "tea", "number": 2}),
        ('{"item": "tea"}', {"item": "tea", "number": 0}),
        ('{"item": "tea", "number": 2, "more": 1} {fine}', {"item": "tea", "number": 2}),
        ('{"Item": "tea", "Quantity": 2}', None),
        ('{"item": "tea", "quantity": 2}', None),
        ("{}", None),
        ('{"order": {"item": "tea", "number": 2}}', None),
        ('{"item": "tea", "number": "two"}', None),
        ("tea", None),
    ],
)
def test_fields_under_other_names_are_invalid_and_not_their_defaults(text, value):
    (row,) = EXTRACTION.parse(["x"], [Reply(text)])
    assert (row.value, row.valid) == (value, value is not None)
    assert bool(row.reason) == (value is None)


@pytest.mark.parametrize(
    "labels", [["US", "us", "eu"], ["caf\u00e9", "cafe\u0301", "bar"], ["very good", "Very  good"]]
)
def test_labels_that_hardly_differ_are_warned_about_at_fit(labels):
    with pytest.warns(SkllmRayWarning, match="differ by their case"):
        ZeroShotGPTClassifier(model="gguf::demo").fit(None, labels)


def test_other_labels_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotGPTClassifier(model="gguf::demo").fit(["x", "y", "z"], ["us", "eu", "us"])


def test_half_a_character_is_no_label():
    with pytest.raises(InputError, match="surrogate"):
        ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["good", "bad \ud800"])
