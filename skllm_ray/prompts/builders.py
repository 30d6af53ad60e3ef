"""Filling a prompt template without letting a text out of its place."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence

_FENCED = re.compile(r"(?P<open>`{3,})(?P<before>\s*)\{x\}(?P<after>\s*)(?P<close>`{3,})")
_MARK = "\ue000x\ue001"  # in no template: of the private use area
_BACKTICKS = re.compile(r"`{3,}")


def check_template(template: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise ``ValueError`` unless `template` holds exactly the placeholders it may.

    Parameters
    ----------
    template : str
        A ``str.format`` string; a literal brace is doubled.
    required, optional : sequence of str
        Placeholder names that must, and that may, occur.

    Raises
    ------
    ValueError
        Naming the placeholder that is missing or unknown.
    """
    allowed = ", ".join("{" + name + "}" for name in (*required, *optional))
    try:
        fields = [(name, spec, conv) for _, name, spec, conv in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"prompt_template cannot be parsed ({error}). Write literal braces doubled, '{{{{' and '}}}}'; "
            f"placeholders are {allowed}."
        ) from None
    for name, spec, conv in fields:
        if name not in (*required, *optional) or spec or conv:
            raise ValueError(
                f"prompt_template has the unknown placeholder {{{name}}}; it may hold {allowed}. "
                "Write literal braces doubled, '{{' and '}}'."
            )
    missing = [name for name in required if name not in {field[0] for field in fields}]
    if missing:
        raise ValueError(f"prompt_template lacks the placeholder {{{missing[0]}}}; it must hold {allowed}.")


def fill(template: str, x: str, values: Mapping[str, str]) -> str:
    """Return `template` with the text `x` and the other `values` in their places.

    Where the template fences ``{x}`` with backticks, the fence is made longer than any run of backticks inside the
    text (the CommonMark rule), so that the text is kept as it is and cannot end its fence.

    Examples
    --------
    >>> fill("Text: ```{x}```", "ok", {})
    'Text: ```ok```'
    >>> fill("Text: ```{x}```", "a ``` b", {})
    'Text: ````a ``` b````'
    """
    runs = _BACKTICKS.findall(x)
    if runs:
        fence = "`" * (max(map(len, runs)) + 1)

        def lengthen(match: re.Match[str]) -> str:
            longer = max(fence, match["open"], match["close"], key=len)
            return f"{longer}{match['before']}{{x}}{match['after']}{longer}"

        template = _FENCED.sub(lengthen, template)
    return template.format(x=x, **values)


def fill_each(template: str, texts: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return what `fill` does for each text, with the other values filled in once and not for each text.

    Examples
    --------
    >>> fill_each("{a}: {x}!", ["ok", "well"], {"a": "Text"})
    ['Text: ok!', 'Text: well!']
    """
    parts = template.format(x=_MARK, **values).split(_MARK)
    if len(parts) != 2:
        return [fill(template, text, values) for text in texts]
    head, tail = parts
    return [fill(template, text, values) if "`" in text else f"{head}{text}{tail}" for text in texts]


def fence(text: str) -> str:
    """Return `text` between two lines of backticks, longer than any run of backticks inside it.

    Examples
    --------
    >>> print(fence("a ``` b"))
    ````
    a ``` b
    ````
    """
    ticks = "`" * max(3, max(map(len, _BACKTICKS.findall(text)), default=0) + 1)
    return f"{ticks}\n{text}\n{ticks}"


def format_example(text: str, answer: str) -> str:
    """Return one example of a few-shot prompt: a fenced text and the answer it should get."""
    return f"Text:\n{fence(text)}\nAnswer: {answer}"


def format_labels(labels: Sequence[str]) -> str:
    r"""Return `labels` as a JSON array, which is unambiguous for labels with quotes, commas or brackets.

    Examples
    --------
    >>> format_labels(["it's", "ça"])
    '["it\'s", "ça"]'
    """
    return json.dumps(list(labels), ensure_ascii=False)
