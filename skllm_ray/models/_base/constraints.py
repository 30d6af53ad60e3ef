"""What each parameter of an estimator may be, as data under scikit-learn's own name, so that all is checked at once.

A class names what it adds in ``_parameter_constraints``; those of its bases hold too. All are checked in ``fit``, and
before every call, since parameters may be set at any time: nothing that can be known from them costs a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any, Final, TypeAlias

import numpy as np

from skllm_ray.errors import ConfigurationError
from skllm_ray.models._base.sklearn_bases import BaseEstimator
from skllm_ray.plain_text import has_half

Constraints: TypeAlias = Mapping[str, Sequence[Any]]
"""For each parameter, what it may be: None, or objects such as those below."""

_LONGEST: Final = 80
_HIDDEN: Final = frozenset({"key", "org", "request_options"})
"""Parameters whose values may hold a credential, so that messages name their type alone."""


class Whole:
    """An int within bounds. True and False are none."""

    def __init__(self, lowest: int, highest: int | None = None) -> None:
        self.lowest, self.highest = lowest, highest

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        if isinstance(val, bool) or not isinstance(val, Integral):
            return False
        return int(val) >= self.lowest and (self.highest is None or int(val) <= self.highest)

    def __str__(self) -> str:
        return f"an int of at least {self.lowest}" + (f" and at most {self.highest}" if self.highest else "")


class Number:
    """A number above 0, or of at least 0. True, False, infinity and NaN are none."""

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        if isinstance(val, bool) or not isinstance(val, Real):
            return False
        return 0 < float(val) < float("inf") or (self.zero and val == 0)

    def __str__(self) -> str:
        return f"a number {'of at least' if self.zero else 'above'} 0"


class Share:
    """A number between 0 and 1, both excluded, or 0 as well. True, False and NaN are none."""

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        if isinstance(val, bool) or not isinstance(val, Real):
            return False
        return 0 < float(val) < 1 or (self.zero and val == 0)

    def __str__(self) -> str:
        return "0, or a number between 0 and 1" if self.zero else "a number between 0 and 1, both excluded"


class Text:
    """A str that is not blank."""

    def __init__(self, longest: int | None = None) -> None:
        self.longest = longest

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        return isinstance(val, str) and bool(val.strip()) and (self.longest is None or len(val) <= self.longest)

    def __str__(self) -> str:
        return "a str that is not blank" + (f", of at most {self.longest} characters" if self.longest else "")


class OneOf:
    """One of some values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one; True is no 1."""
        if isinstance(val, bool) or not isinstance(val, (str, Integral)):
            return False
        return (val if isinstance(val, str) else int(val)) in self.values

    def __str__(self) -> str:
        *others, last = map(repr, self.values)
        return f"{', '.join(others)} or {last}" if others else last


class Is:
    """An object of a type, in words of ours."""

    def __init__(self, kind: type | tuple[type, ...], words: str) -> None:
        self.kind, self.words = kind, words

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        return isinstance(val, self.kind)

    def __str__(self) -> str:
        return self.words


class Has:
    """An object with a method."""

    def __init__(self, method: str, words: str) -> None:
        self.method, self.words = method, words

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one, and no class."""
        return not isinstance(val, type) and callable(getattr(val, self.method, None))

    def __str__(self) -> str:
        return self.words


class Texts:
    """A mapping to texts."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one."""
        return isinstance(val, Mapping) and all(isinstance(text, str) for text in val.values())

    def __str__(self) -> str:
        return "a mapping of names to str"


def check_values(estimator: BaseEstimator) -> None:
    """Raise ``ConfigurationError`` for the first parameter that is not what its constraints allow."""
    values = vars(estimator)  # get_params reads the constructor's signature anew, a quarter of a warm call of one row
    for name, rules in _rules_of(type(estimator)).items():  # type: ignore[arg-type]
        value = values[name] if name in values else estimator.get_params(deep=False)[name]
        if not any(value is None if rule is None else rule.is_satisfied_by(value) for rule in rules):
            given = type(value).__name__ if name in _HIDDEN else shorten(value)
            raise ConfigurationError(f"{name} must be {_either(rules)}; got {given}.")
        if has_half(value):
            raise ConfigurationError(
                f"{name} holds half of a surrogate pair, which no request can carry.",
                "Read what it was made of with its right encoding.",
            )


def shorten(value: object) -> str:
    """Return `value` as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


A_STR: Final = Is(str, "a str")
A_FLAG: Final = Is((bool, np.bool_), "True or False")
A_MAPPING: Final = Is(Mapping, "a mapping")
TEXTS: Final = Texts()


def at_least_one(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` unless the argument `name` is a positive int."""
    if not Whole(1).is_satisfied_by(value):
        raise ConfigurationError(f"{name} must be {Whole(1)}; got {value!r}.")


def true_or_false(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` unless the argument `name` is True or False: ``"no"`` would count as True."""
    if not A_FLAG.is_satisfied_by(value):
        raise ConfigurationError(f"{name} must be {A_FLAG}; got {shorten(value)}.")


@cache
def _rules_of(cls: Any) -> dict[str, list[Any]]:
    """Return the constraints of the parameters that a class has, those of its bases among them."""
    found: dict[str, Sequence[Any]] = {}
    for base in reversed(cls.__mro__):
        found |= vars(base).get("_parameter_constraints", {})
    mine = cls._get_param_names()
    return {name: list(rules) for name, rules in found.items() if name in mine}


def _either(rules: Sequence[Any]) -> str:
    *others, last = map(str, rules)
    return f"{', '.join(others)} or {last}" if others else last
