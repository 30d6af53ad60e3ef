"""Label lists as a prompt may show them, and texts with their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from training.demo_model import aspects
from training.demo_model.reviews import SENTIMENTS, sentiment_text
from training.demo_model.topics import TOPICS, topic_text

TOPIC_ALIASES = {"sports": "sport", "technology": "tech"}


@dataclass(frozen=True)
class Task:
    """A label list as a prompt shows it; `meaning` maps each shown label to the generator's own name."""

    kind: str
    labels: tuple[str, ...]
    max_cats: int | None = None
    meaning: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A text, the label or the list of labels that answers its prompt, and all it means, listed or not."""

    text: str
    answer: str | list[str]
    meaning: tuple[str, ...]


def _shown(rng: random.Random, names: Sequence[str], plain: bool) -> dict[str, str]:
    """Map labels as shown (lower case, capitalised, now and then in capitals) to `names`."""
    change = str if plain else rng.choice((str,) * 8 + (str.capitalize,) * 5 + (str.title, str.upper))
    return {change(name): name for name in names}


def draw_task(rng: random.Random, kind: str, *, plain: bool = False) -> Task:
    """Draw a label list for a kind of task: a random subset in a random order; `plain` keeps the names as they are."""
    if kind == "sentiment":
        names = list(SENTIMENTS if rng.random() < 0.8 else SENTIMENTS[:2])
        rng.shuffle(names)
        shown = _shown(rng, names, plain)
        return Task(kind, tuple(shown), None, shown)
    if kind == "topic":
        size = len(TOPICS) if rng.random() < 0.25 else rng.randint(2, len(TOPICS))
        names = rng.sample(TOPICS, size)
        alias = not plain and rng.random() < 0.12
        shown = _shown(rng, names, plain)
        if alias:
            shown = {TOPIC_ALIASES.get(name, label): name for label, name in shown.items()}
        return Task(kind, tuple(shown), None, shown)
    pool = aspects.COMMON if rng.random() < 0.6 else aspects.ASPECTS
    names = rng.sample(pool, rng.randint(3, min(len(pool), 9)))
    other = not plain and rng.random() < 0.15
    labels = {(rng.choice(aspects.PHRASES[name]["labels"]) if other else name): name for name in names}
    cased = _shown(rng, list(labels), plain)
    shown = {label: labels[plain] for label, plain in cased.items()}
    return Task(kind, tuple(shown), rng.randint(2, 8), shown)


def draw_example(rng: random.Random, task: Task) -> Example:
    """Draw a text and its answer for `task`."""
    if task.max_cats is None:
        label = rng.choice(task.labels)
        made = sentiment_text if task.kind == "sentiment" else topic_text
        return Example(made(rng, task.meaning[label]), label, (task.meaning[label],))
    count = rng.choices((0, 1, 2, 3, 4), (10, 32, 32, 18, 8))[0]
    present = rng.sample(task.labels, min(count, len(task.labels), task.max_cats))
    names = [task.meaning[label] for label in present]
    if rng.random() < 0.12:  # an aspect that the list does not offer
        hidden = [name for name in aspects.COMMON if name not in task.meaning.values()]
        names += rng.sample(hidden, min(1, len(hidden)))
    rng.shuffle(names)
    return Example(aspects.aspects_text(rng, names), [label for label in task.labels if label in present], tuple(names))


def corrupt(ids: Sequence[int], rng: random.Random, share: float, vocab_size: int) -> list[int]:
    """Replace a share of the tokens with random ones, so that the model bears words it does not know."""
    return [rng.randrange(300, vocab_size) if rng.random() < share else token for token in ids]
