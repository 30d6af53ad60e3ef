"""Jinja for chat templates that nobody has read: no way to Python, and an end to time and memory.

A template comes with a model's file, from whoever made it. jinja2's immutable sandbox keeps it from reaching Python.
What it leaves open is `9 ** 9 ** 9`, `"x" * 3_000_000_000`, loops within loops, and lists that hold one another twice,
forty times over. So every operation that can take long or make something large passes through a `Meter`: loops, calls,
filters, tests, operators, literals and outputs. Each step looks at the clock, and is charged for the size of what it
makes before or as it makes it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import BaseLoader, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 2.0
"""CPU time that one prompt may take."""
MAX_SIZE = 1_000_000
"""Characters and values that one prompt may make, besides 50 times what it was given."""
_STEPS = 32  # between two looks at the clock
_BITS = 1024  # of an integer
_LARGE = 16  # an argument from which on it may be a width
_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{4})")
_TEXT_METHODS = frozenset(
    (
        *(
            "capitalize",
            "lower",
            "swapcase",
            "title",
            "upper",
            "strip",
            "lstrip",
            "rstrip",
            "removeprefix",
            "removesuffix",
        ),
        *("split", "rsplit", "splitlines", "partition", "rpartition", "join", "replace", "format", "removeprefix"),
        *("startswith", "endswith", "count", "find", "index", "rfind", "rindex", "removesuffix"),
        *(
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
        ),
    )
)
_NO_FILTERS = frozenset(
    ("center", "filesizeformat", "pprint", "random", "striptags", "sum", "urlize", "wordwrap", "xmlattr")
)


class TemplateLimitError(Exception):
    """A template takes too long or makes too much."""


class Meter:
    """What one rendering has used.

    Parameters
    ----------
    given : int
        Characters of the messages.
    """

    def __init__(self, given: int) -> None:
        self._until = time.thread_time() + MAX_SECONDS
        self._steps = 0
        self._all = self._left = MAX_SIZE + 50 * given

    def step(self) -> None:
        """Look at the clock now and then."""
        self._steps += 1
        if self._steps % _STEPS == 0 and time.thread_time() > self._until:
            raise TemplateLimitError(f"it takes more than {MAX_SECONDS:g} seconds to render")

    def charge(self, size: int) -> None:
        """Take `size` from what is left."""
        self._left -= size
        if self._left < 0:
            raise TemplateLimitError(f"it makes more than {MAX_SIZE:,} characters or values of a short text")

    def allow(self, size: int) -> None:
        """Raise if `size` is more than there was at the beginning."""
        if size > self._all:
            self.charge(size)

    def weigh(self, value: object) -> int:
        """Return how many characters and values `value` holds, as often as it holds them."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, list | tuple | dict | Namespace):
            return 1
        waiting: list[Any] = [value]
        total = 0
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, Namespace):
                waiting += one._Namespace__attrs.values()  # it answers for nothing else
            elif isinstance(one, dict):
                waiting += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                waiting += one
            total += 1
            if total > self._left:
                break
        self.charge(0 if total <= self._left else total)
        return total


class _NoMeter(Meter):
    """What counts while a template is compiled: nothing is run then."""

    def __init__(self) -> None:
        super().__init__(0)

    def step(self) -> None:
        pass

    def charge(self, size: int) -> None:
        if size > MAX_SIZE:
            raise TemplateLimitError(f"it makes more than {MAX_SIZE:,} characters or values")


class _Metered(NodeTransformer):
    """Sends loops, literals and concatenations through the environment's own filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_loop")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, "_made")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _GenerationTags(Extension):
    """Lets ``{% generation %}`` pass, which marks for training what the model writes."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment that chat templates are compiled and rendered in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            loader=BaseLoader(),
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before it is metered
            finalize=self._out,
            extensions=[_GenerationTags, loopcontrols],
        )
        self._rendering = threading.local()
        self._idle = _NoMeter()
        del self.globals["lipsum"]
        self.filters = {name: self._metered(one) for name, one in FILTERS.items() if name not in _NO_FILTERS}
        self.filters |= {
            "tojson": self._metered(_to_json),
            "from_json": self._metered(json.loads),
            "format": self._metered(_format),
        }
        self.filters |= {"_loop": self._loop, "_made": self._out, "_joined": self._joined}
        self.tests = {name: self._stepped(one) for name, one in self.tests.items()}

    def render_messages(self, template: Any, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
        """Return what `template` makes of `messages`.

        Raises
        ------
        TemplateLimitError
            If it takes too long or makes too much.
        Exception
            Whatever else the template raises.
        """
        self._rendering.meter = Meter(sum(_length(message["content"]) for message in messages))
        try:
            return str(template.render(messages=messages, raise_exception=_refuse, strftime_now=_now, **values))
        finally:
            self._rendering.meter = self._idle

    # --- what jinja2 calls ----------------------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        _Metered().visit(parsed)
        return parsed

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute: of a text, what cannot make it much longer."""
        if isinstance(obj, str | bytes):
            return attr in _TEXT_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return ``str.format`` made safe: neither Python's attributes nor large widths can be reached."""
        is_format = isinstance(value, BuiltinMethodType) and value.__name__ in {"format", "format_map"}
        if is_format and (len(str(value.__self__)) > 100 or _nests(str(value.__self__))):
            raise TemplateLimitError("it formats a text in a way that may become too long")
        return super().wrap_str_format(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        """Call what a template calls."""
        meter = __self._meter
        meter.step()
        meter.charge(sum(meter.weigh(one) for one in args) + sum(meter.weigh(one) for one in kwargs.values()))
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str):
            meter.charge(_grown(__obj.__name__, __obj.__self__, args))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.charge(meter.weigh(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template computes, where it is not too large."""
        meter = self._meter
        meter.step()
        if operator == "**" and not (_small(left, 1e6) and _small(right, 64)):
            raise TemplateLimitError("it raises a number to a power that is too large")
        if operator == "*":
            meter.charge(_product(left, right))
        if operator == "%" and isinstance(left, str):
            meter.charge(meter.weigh(right) * max(1, left.count("%")))
            if _WIDE.search(left):
                raise TemplateLimitError("it pads texts to a width that is too large")
        result = super().call_binop(context, operator, left, right)
        meter.charge(meter.weigh(result))
        return result

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _meter(self) -> Meter:
        found = vars(self._rendering).get("meter", self._idle)
        return found if isinstance(found, Meter) else self._idle

    def _out(self, value: Any) -> Any:
        self._meter.step()
        self._meter.charge(self._meter.weigh(value))
        return value

    def _loop(self, values: Iterable[Any]) -> Iterator[Any]:
        meter = self._meter
        for value in values:
            meter.step()
            yield value

    def _joined(self, parts: Sequence[Any]) -> str:
        return "".join(map(str, self._out(parts)))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            meter = self._meter
            meter.step()
            given = [*args, *kwargs.values()]
            sizes = [meter.weigh(one) for one in given]
            for i, one in enumerate(given):  # replace, join: a text may stand in another value at every place
                if isinstance(one, str):
                    meter.allow(len(one) * max([0, *sizes[:i], *sizes[i + 1 :]]))
            meter.charge(sum(sizes) * max([1, *(int(abs(one)) for one in given if _is_width(one))]))
            result = function(*args, **kwargs)
            meter.charge(meter.weigh(result))
            return result

        return filtered

    def _stepped(self, function: Any) -> Any:
        @wraps(function)
        def tested(*args: Any, **kwargs: Any) -> Any:
            self._meter.step()
            return function(*args, **kwargs)

        return tested


def _length(content: object) -> int:
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        return 0
    return sum(len(part) if isinstance(part, str) else len(str(part.get("text", ""))) for part in parts)


def _is_width(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > _LARGE


def _small(value: object, most: float) -> bool:
    return isinstance(value, int | float) and abs(value) <= most


def _product(left: Any, right: Any) -> int:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
            return len(one) * max(0, other)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _BITS:
        raise TemplateLimitError("it multiplies numbers that are too large")
    return 1


def _grown(name: str, text: str, args: Sequence[Any]) -> int:
    """Return how long a text may be that `name` makes of `text`."""
    if name == "replace" and len(args) > 1 and isinstance(args[1], str):
        return len(text) + text.count(str(args[0])) * len(args[1])
    if name == "join" and args and isinstance(args[0], list | tuple):
        return len(text) * len(args[0])
    return len(text)


def _nests(text: str) -> bool:
    """Return whether a format string has widths, or fields within fields."""
    return re.search(r"\d{4}|\{[^}]*[{:]", text) is not None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as JSON, as Transformers' templates expect it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _format(text: str, *values: Any) -> str:
    if _WIDE.search(str(text)):
        raise TemplateLimitError("it pads texts to a width that is too large")
    return str(text) % values


def _now(form: str) -> str:
    if len(form) > 100 or re.search(r"%[^%a-zA-Z]*\d{2}", form):
        raise TemplateLimitError("it formats a date in a way that is too long")
    return datetime.now().strftime(form)


def _refuse(message: str) -> str:
    raise ValueError(message)
