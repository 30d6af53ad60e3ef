"""Filling phrases, joining them to sentences, and varying the surface: case, spelling, contractions, typing errors."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from training.demo_model import lexicon

GENERAL = lexicon.merge("general", "stories", "events")
DOMAINS = list(lexicon.read("domains").values())
SLOTS = {**lexicon.read("surface")["slots"], **lexicon.read("events")["slots"]}


def _pairs(section: str) -> list[tuple[str, str]]:
    return [(a, b) for a, _, b in (pair.partition(" = ") for pair in lexicon.read("surface")[section]["all"])]


CONTRACTIONS, AMERICAN = _pairs("contractions"), _pairs("american")


def _money(rng: random.Random) -> str:
    amount = rng.choice((rng.randint(5, 99), rng.randint(100, 999), rng.choice((20, 30, 50, 80, 100, 200, 500, 1000))))
    return rng.choice(("{} euros", "${}", "£{}", "{} dollars", "€{}", "{} pounds", "{} quid", "{} bucks")).format(
        amount
    )


def fill(rng: random.Random, phrase: str, thing: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "n":
            return str(rng.randint(2, 40))
        if name == "money":
            return _money(rng)
        if name == "thing":
            return thing
        if name == "part":
            return rng.choice(GENERAL["parts"]["all"])
        return rng.choice(SLOTS[name])

    while "{" in phrase:  # a slot's words may have slots of their own
        phrase = re.sub(r"\{(\w+)\}", value, phrase)
    return phrase


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def article(word: str) -> str:
    return ("an " if word[:1] in "aeiouAEIOU8" else "a ") + word


def is_plural(thing: str) -> bool:
    return thing.endswith("s") and not thing.endswith(("ss", "us", "BMS"))


def weighted(rng: random.Random, options: Sequence[tuple[float, Callable[[], str]]]) -> str:
    return rng.choices([made for _, made in options], [weight for weight, _ in options])[0]()


def _typo(rng: random.Random, word: str) -> str:
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def surface(rng: random.Random, text: str) -> str:
    """Vary contractions, spelling, case and punctuation, and now and then slip in a typing error."""
    if rng.random() < 0.6:
        for full, short in CONTRACTIONS:
            if full in text:
                text = re.sub(rf"\b{full}\b", short, text)
    if rng.random() < 0.35:
        for british, american in AMERICAN:
            if british in text:
                text = re.sub(rf"\b{british}", american, text)
    if rng.random() < 0.06:
        words = text.split(" ")
        for _ in range(rng.choice((1, 1, 2))):
            index = rng.randrange(len(words))
            words[index] = _typo(rng, words[index])
        text = " ".join(words)
    draw = rng.random()
    if draw < 0.08:
        text = text.lower()
    elif draw < 0.1:
        text = text.upper()
    if rng.random() < 0.06:
        text = text.replace("'", "’") if rng.random() < 0.5 else text.replace("'", "")
    if rng.random() < 0.12:
        text = text.rstrip(".!")
    return text


def sentences(rng: random.Random, clauses: Sequence[str], excitement: float = 0.0) -> str:
    """Join clauses to sentences: most stand alone, some are chained with commas or "and"."""
    text = upper_first(clauses[0])
    for clause in clauses[1:]:
        if rng.random() < 0.72:
            stop = (
                rng.choice(("!", "!", "!!", "!!!")) if rng.random() < excitement else rng.choice((".",) * 9 + ("...",))
            )
            text += f"{stop} {upper_first(clause)}"
        else:
            text += rng.choice((", and ", ", ", ", ", " and ", "; ", " - ", " – ")) + clause
    if text[-1] in ".!?)" or not text[-1].isascii():
        return text
    return text + (rng.choice(("!", "!", "!!", "!!!")) if rng.random() < excitement else ".")
