"""Product reviews that speak of known aspects."""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.demo_model import lexicon
from training.demo_model.surface import DOMAINS, fill, is_plural, sentences, surface, upper_first

PHRASES = lexicon.read("aspects")
ASPECTS = tuple(name for name in PHRASES if name != "none")
# The ones drawn most; the rest are rarer extras.
COMMON = ASPECTS[:8]


def aspect_clause(rng: random.Random, aspect: str, thing: str) -> str:
    """Return one clause that speaks of this aspect, well or badly."""
    pole = rng.choice(("pos", "neg"))
    if rng.random() < 0.68:
        text = fill(rng, rng.choice(PHRASES[aspect][pole]), thing)
        if text.startswith("it ") and rng.random() < 0.3 and not is_plural(thing):
            text = f"the {thing} {text[3:]}"
        return text
    noun = rng.choice(PHRASES[aspect]["nouns"])
    word = rng.choice(
        (
            "good",
            "great",
            "excellent",
            "perfect",
            "fine",
            "okay",
            "superb",
            "top",
            "wonderful",
            "nice",
            "flawless",
            "fantastic",
        )
        if pole == "pos"
        else (
            "bad",
            "poor",
            "terrible",
            "awful",
            "disappointing",
            "horrible",
            "a joke",
            "a disaster",
            "not good",
            "dreadful",
        )
    )
    return rng.choice(
        (
            f"the {noun} is {word}", f"the {noun} was {word}", f"the {noun} was {word}", f"{noun} {word}",
            f"{word} {noun}",
            f"I {'like' if pole == 'pos' else 'do not like'} the {noun}", f"the {noun} could be better",
            f"no complaints about the {noun}", f"I {'am happy' if pole == 'pos' else 'have a problem'} with the {noun}",
            f"the {noun} impressed me" if pole == "pos" else f"the {noun} let me down", f"{noun}: {word}",
            f"I was {'pleased' if pole == 'pos' else 'disappointed'} by the {noun}", f"as for the {noun}, {word}",
            f"{'full marks' if pole == 'pos' else 'no marks'} for the {noun}",
            f"what a {word.removeprefix('a ')} {noun}",
        )
    )  # fmt: skip


def aspects_text(rng: random.Random, aspects: Sequence[str]) -> str:
    """Return a product review that speaks of these aspects and no others."""
    thing = rng.choice([thing for domain in DOMAINS[:12] for thing in domain["things"]])
    clauses = [aspect_clause(rng, aspect, thing) for aspect in aspects]
    if aspects and rng.random() < 0.15:
        clauses.append(aspect_clause(rng, rng.choice(aspects), thing))
    rng.shuffle(clauses)
    fillers = rng.choice((0, 0, 0, 1, 1, 2)) if aspects else rng.randint(1, 3)
    for _ in range(fillers):
        clauses.insert(rng.randint(0, len(clauses)), fill(rng, rng.choice(PHRASES["none"]["all"]), thing))
    text = clauses[0]
    for clause in clauses[1:]:
        if rng.random() < 0.45:
            text += rng.choice((". ", ". ", ". ", "! ")) + upper_first(clause)
        else:
            text += (
                rng.choice(
                    (", but ", " but ", " and ", ", and ", ", ", "; ", ", while ", " although ", ". Also, ", " - ")
                )
                + clause
            )
    return surface(rng, sentences(rng, [text], 0.15))
