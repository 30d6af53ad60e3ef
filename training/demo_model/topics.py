"""Texts of a known topic, as in news, questions, advice or small talk."""

from __future__ import annotations

import random

from training.demo_model import lexicon
from training.demo_model.surface import fill, sentences, surface, weighted

PHRASES = lexicon.read("topics")
TOPICS = tuple(PHRASES)
FRAMES = lexicon.read("surface")["about"]["all"]


def topic_text(rng: random.Random, topic: str) -> str:
    """Return one to three sentences on this topic, as in news, questions, advice or small talk."""
    phrases = PHRASES[topic]

    def event() -> str:
        text = f"{rng.choice(phrases['subj'])} {rng.choice(phrases['pred'])}"
        return f"{text} {rng.choice(phrases['tail'])}" if rng.random() < 0.4 else text

    def about() -> str:
        one, two = rng.sample(phrases["kw"], 2)
        return rng.choice(FRAMES).format(one=one, two=two)

    def sentence() -> str:
        return rng.choice(phrases["sent"])

    def one() -> str:
        return weighted(rng, ((4, event), (3.5, sentence), (1.6, about)))

    clauses = [one() for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    if rng.random() < 0.15:
        start = rng.choice(
            (
                "breaking news",
                "yesterday",
                "according to a report",
                "this week",
                "update",
                "in brief",
                "report",
                "today",
                "live",
            )
        )
        clauses[0] = f"{start}{rng.choice((':', ',', ':'))} {clauses[0]}"
    if rng.random() < 0.08:
        clauses.append(
            fill(
                rng,
                rng.choice(("{person} told me about it", "more on {day}", "read more", "what do you think")),
                "thing",
            )
        )
    text = sentences(rng, clauses).replace("?.", "?")
    if rng.random() < 0.05:
        text = text.title().rstrip(".")
    return surface(rng, text)
