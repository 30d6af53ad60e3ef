"""Templates are filled so that no text leaves its place."""

from __future__ import annotations

import json
import string

import pytest

from skllm_ray.prompts import check_template, fill, format_labels, templates

CLASSIFICATION = [templates.ZERO_SHOT_CLF_PROMPT_TEMPLATE, templates.ZERO_SHOT_MLCLF_PROMPT_TEMPLATE]
VALUES = {"labels": format_labels(["a", "b"]), "max_cats": "5"}


def fences(prompt):
    """Return the lines of `prompt` that are made of three backticks or more."""
    return [line for line in prompt.splitlines() if len(line) >= 3 and set(line) == {"`"}]


@pytest.mark.parametrize(
    ("text", "n_backticks"),
    [
        ("plain", 3),
        ("`one` and ``two``", 3),
        ("a ``` b", 4),
        ("```\ncode\n```", 4),
        ("`" * 9, 10),
        ("``` ````` ```", 6),
    ],
)
@pytest.mark.parametrize("template", CLASSIFICATION)
def test_a_fence_is_longer_than_any_run_in_the_text(template, text, n_backticks):
    prompt = fill(template, text, VALUES)
    fence = "`" * n_backticks
    assert prompt.endswith(f"\n{fence}\n{text}\n{fence}")
    assert fences(prompt).count(fence) == 2


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("```{x}```", "a ``` b", "````a ``` b````"),
        ("`````{x}`````", "a ``` b", "`````a ``` b`````"),
        ("``` {x}\n```", "a ```` b", "````` a ```` b\n`````"),
        ("Text: {x}.", "a ``` b", "Text: a ``` b."),
        ("```json\n{{}}\n``` ```{x}```", "```!", "```json\n{}\n``` ```````!````"),
    ],
)
def test_only_the_fence_around_the_text_grows(template, text, expected):
    assert fill(template, text, {}) == expected


@pytest.mark.parametrize(
    "text", ["{labels}", "{x}", "{{x}}", "{", "}", "{0} {} {unknown!r:>9}", "%s $x \\1 \\g<open>", "👩‍👩‍👧 \0 \r\n"]
)
@pytest.mark.parametrize("template", CLASSIFICATION)
def test_a_text_is_kept_to_the_letter(template, text):
    assert fill(template, text, VALUES).endswith(f"\n```\n{text}\n```")


def test_values_are_not_filled_again_and_doubled_braces_become_single():
    assert fill('{{"k": {labels}}} {x}', "{labels}", {"labels": "{x}"}) == '{"k": {x}} {labels}'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{labels}", r"lacks the placeholder \{x\}; it must hold \{x\}, \{labels\}, \{hint\}"),
        ("{x}", r"lacks the placeholder \{labels\}"),
        ("{x} {labels} {label}", r"unknown placeholder \{label\}"),
        ("{x} {labels} {}", r"unknown placeholder \{\}"),
        ("{x} {labels} {0}", r"unknown placeholder \{0\}"),
        ("{x.__class__} {x} {labels}", r"unknown placeholder \{x.__class__\}"),
        ("{x[0]} {x} {labels}", "unknown placeholder"),
        ("{x!r} {labels}", "unknown placeholder"),
        ("{x:>10} {labels}", "unknown placeholder"),
        ('{"label": "x"} {x} {labels}', "doubled"),
        ("{x} {labels} {", "cannot be parsed.*doubled"),
        ("{x} {labels} }", "cannot be parsed"),
    ],
)
def test_a_wrong_template_is_refused_by_name(template, message):
    with pytest.raises(ValueError, match=message):
        check_template(template, ["x", "labels"], ["hint"])


@pytest.mark.parametrize("template", ["{x}{labels}", "{labels} {x} {x} {hint}", '{{"label": "{{}}"}} {labels}\n{x}'])
def test_a_right_template_passes(template):
    check_template(template, ["x", "labels"], ["hint"])


@pytest.mark.parametrize("template", CLASSIFICATION)
def test_the_defaults_pass_and_end_with_the_text(template):
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    check_template(template, ["x", "labels"], ["max_cats"])
    before, _, after = template.partition("{x}")
    assert after == "\n```"
    assert all("{" + name + "}" in before for name in names - {"x"})


@pytest.mark.parametrize("labels", [["it's", 'say "hi"'], ["a, b", "[c]", "\\"], ["ça", "😀", "\n"], ["{x}", "```"]])
def test_labels_are_an_unambiguous_list(labels):
    assert json.loads(format_labels(labels)) == labels
    assert "\\u" not in format_labels(labels)
