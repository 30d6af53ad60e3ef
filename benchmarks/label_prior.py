"""Macro-F1 with and without ``label_prior="uniform"``: ``python -m benchmarks.label_prior MODEL DATA``.

MODEL is a model's name, such as ``gguf::/models/gemma.gguf``, and DATA a folder with ``train.csv`` and ``test.csv``
that have the columns ``text`` and ``category``, as BANKING77 has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from sklearn.metrics import f1_score

import skllm_ray
from skllm_ray.classification import FewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.models._base.classifier import LLMClassifier

_console = Console()


@click.command()
@click.argument("model")
@click.argument("data", type=Path)
@click.option("--labels", default=[5, 20], multiple=True, show_default=True, help="Labels, drawn from all.")
@click.option("--texts", default=200, show_default=True, help="Texts that are classified, and that fit gets.")
@click.option("--examples", default=4, show_default=True, help="Examples of a class.")
def main(model: str, data: Path, labels: tuple[int, ...], texts: int, examples: int) -> None:
    """Print what each way of asking reaches on the same texts."""
    skllm_ray.init(local_mode=True)
    for n_labels in labels:
        train, test = (_some(pd.read_csv(data / f"{name}.csv"), n_labels) for name in ("train", "test"))
        asked = test.sample(min(texts, len(test)), random_state=0)
        for way, clf in _ways(model, train, texts, examples):
            began = time.perf_counter()
            answers = clf.classes_[clf.predict_proba(asked["text"]).argmax(axis=1)]
            reached = f1_score(asked["category"], answers, average="macro")
            seconds = time.perf_counter() - began
            _console.print(f"{n_labels} labels, {len(asked)} texts, {way}: macro-F1 {reached:.3f}, {seconds:.0f} s")


def _ways(model: str, train: pd.DataFrame, n_texts: int, n_examples: int) -> Iterator[tuple[str, LLMClassifier]]:
    labels = sorted(set(train["category"]))
    fitted = train.sample(min(n_texts, len(train)), random_state=1)
    shown = train.groupby("category").sample(n_examples, random_state=0).sample(frac=1, random_state=0)
    for prior, name in ((None, "as it is"), ("uniform", "without the prior of texts without content")):
        yield f"zero-shot, {name}", ZeroShotGPTClassifier(model, label_prior=prior).fit(None, labels)
        few = FewShotGPTClassifier(model, label_prior=prior)
        yield f"{n_examples} examples a class, {name}", few.fit(shown["text"], shown["category"])
    own = ZeroShotGPTClassifier(model, label_prior="uniform").fit(fitted["text"], fitted["category"])
    yield f"zero-shot, without the prior of {len(fitted)} texts of fit", own


def _some(frame: pd.DataFrame, n_labels: int) -> pd.DataFrame:
    chosen = np.random.default_rng(0).choice(sorted(frame["category"].unique()), n_labels, replace=False)
    return frame[frame["category"].isin(chosen)]


if __name__ == "__main__":
    main()
