"""The words and phrases the generator combines, as plain text files, all written for this purpose."""

from __future__ import annotations

from functools import cache
from pathlib import Path

Section = dict[str, list[str]]


def merge(*names: str) -> dict[str, Section]:
    """Read several files and join the sections they share."""
    joined: dict[str, Section] = {}
    for name in names:
        for title, section in read(name).items():
            for key, phrases in section.items():
                joined.setdefault(title, {}).setdefault(key, []).extend(phrases)
    return joined


@cache
def read(name: str) -> dict[str, Section]:
    """Read ``<name>.txt``: ``[section]`` lines, then ``key: phrase | phrase | ...`` lines."""
    sections: dict[str, Section] = {}
    for line in Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[] "), {})
        elif line.strip():
            key, _, phrases = line.partition(":")
            section.setdefault(key, []).extend(phrase.strip() for phrase in phrases.split(" | "))
    return sections
