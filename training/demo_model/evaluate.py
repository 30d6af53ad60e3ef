"""Measure a GGUF as the library uses it: labels scored by llama.cpp under the library's own prompts.

Run it as ``python -m training.demo_model.evaluate demo.gguf`` for the generated hold-out, and with ``--csv FILE``
(columns ``text`` and ``label``) for texts of any other origin.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import llama_cpp
import numpy as np

from training.demo_model.generator import draw_example, draw_task
from training.demo_model.reviews import SENTIMENTS
from training.demo_model.tokens import render_prompt
from training.demo_model.topics import TOPICS, topic_text


class Scorer:
    """Scores continuations of a prompt, keeping what consecutive prompts share in llama.cpp's cache."""

    def __init__(self, path: Path) -> None:
        self.llama = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=1024, logits_all=True, verbose=False)
        self.kept: list[int] = []

    def tokens(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def log_probability(self, prompt: str, continuation: str) -> float:
        """Return log P of `continuation` after `prompt`, both tokenised as one string."""
        ids, start = self.tokens(prompt + continuation), len(self.tokens(prompt))
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, self.kept, strict=False)) if a != b), min(len(ids), len(self.kept))
        )
        shared = min(shared, len(ids) - 1)
        self.llama.n_tokens = shared
        self.llama.eval(ids[shared:])
        self.kept = ids
        logits = np.asarray(self.llama.scores[start - 1 : len(ids) - 1], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(log_p[np.arange(len(ids) - start), ids[start:]].sum())

    def choose(self, text: str, labels: Sequence[str]) -> str:
        prompt = render_prompt(text, labels) + '{"label": "'
        return max(labels, key=lambda label: self.log_probability(prompt, f'{label}"'))

    def choose_many(self, text: str, labels: Sequence[str], max_cats: int) -> list[str]:
        prompt = render_prompt(text, labels, max_cats) + '{"label": ['
        found: list[str] = []
        while len(found) < min(max_cats, len(labels)):
            more = ', "' if found else '"'
            if self.log_probability(prompt, "]") > self.log_probability(prompt, more):
                break
            rest = [label for label in labels if label not in found]
            best = max(rest, key=lambda label: self.log_probability(prompt + more, f'{label}"'))
            found.append(best)
            prompt += f'{more}{best}"'
        return found


def _report(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    right = sum(a == b for a, b in pairs)
    click.echo(f"{title}: {right}/{len(pairs)} = {right / len(pairs):.1%}")
    for label in dict.fromkeys(truth for truth, _ in pairs):
        answers = Counter(found for truth, found in pairs if truth == label)
        click.echo(f"    {label}: {dict(answers.most_common())}")


def generated(scorer: Scorer, rows: int, seed: int) -> None:
    """Report the figures on generated texts that training did not see."""
    rng = random.Random(seed)
    for kind in ("sentiment", "topic"):
        pairs = []
        for _ in range(rows):
            task = draw_task(rng, kind)
            example = draw_example(rng, task)
            pairs.append((task.meaning[str(example.answer)], task.meaning[scorer.choose(example.text, task.labels)]))
        _report(f"generated {kind}", pairs)
    exact = hits = found = wanted = 0
    for _ in range(rows):
        task = draw_task(rng, "aspects")
        example = draw_example(rng, task)
        answer = scorer.choose_many(example.text, task.labels, task.max_cats or len(task.labels))
        exact += answer == example.answer
        hits += len(set(answer) & set(example.answer))
        found, wanted = found + len(answer), wanted + len(example.answer)
    click.echo(f"generated aspects: exact {exact / rows:.1%}, micro-F1 {2 * hits / (found + wanted):.3f}, rows {rows}")


def from_csv(scorer: Scorer, path: Path, show: bool) -> None:
    """Report the accuracy on the texts of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    labels = list(dict.fromkeys(label for _, label in rows))
    if set(labels) <= set(SENTIMENTS):
        labels = [label for label in SENTIMENTS if label in labels]
    pairs = [(label, scorer.choose(text, labels)) for text, label in rows]
    _report(path.name, pairs)
    if show:
        for (text, _), (truth, answer) in zip(rows, pairs, strict=True):
            if truth != answer:
                click.echo(f"    {truth} taken for {answer}: {text}")


def embeddings(path: Path, seed: int) -> None:
    """Report how much closer texts of one topic lie than texts of two."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=512, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, verbose=False
    )
    rng = random.Random(seed)
    topics = [topic for topic in TOPICS for _ in range(12)]
    vectors = np.array([llama.embed(topic_text(rng, topic)) for topic in topics])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    close = vectors @ vectors.T
    same = np.equal.outer(topics, topics)
    np.fill_diagonal(same, False)
    other = ~np.equal.outer(topics, topics)
    np.fill_diagonal(close, -1)
    nearest = float(np.mean([topics[i] == topics[j] for i, j in enumerate(close.argmax(1))]))
    click.echo(
        f"embeddings: finite {bool(np.isfinite(vectors).all())}, mean cosine {close[same].mean():.3f} within a topic, "
        f"{close[other].mean():.3f} between topics, nearest neighbour of the same topic {nearest:.1%}"
    )


@click.command()
@click.argument("gguf", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", default=400, show_default=True, help="Generated texts per task; 0 for none.")
@click.option("--seed", default=987_654, show_default=True, help="Another one than training's.")
@click.option(
    "--csv", "files", type=click.Path(path_type=Path, exists=True), multiple=True, help="Rows of text and label."
)
@click.option("--errors", is_flag=True, help="Show what was taken for what in the files.")
def main(gguf: Path, rows: int, seed: int, files: tuple[Path, ...], errors: bool) -> None:
    """Measure the demo model GGUF."""
    scorer = Scorer(gguf)
    if rows:
        generated(scorer, rows, seed)
        embeddings(gguf, seed)
    for path in files:
        from_csv(scorer, path, errors)


if __name__ == "__main__":
    main()
