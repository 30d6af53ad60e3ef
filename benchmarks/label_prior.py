"""Macro-F1 with and without ``label_prior="uniform"`` on labelled texts: ``python -m benchmarks.label_prior MODEL DATA``.

`MODEL` is a model's name, such as ``gguf::/models/gemma.gguf``; `DATA` a folder with ``train.csv`` and ``test.csv`` that
have the columns ``text`` and ``category``, as BANKING77 has. The labels are drawn at random, the same for all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

import skllm_ray
from skllm_ray.classification import FewShotGPTClassifier, ZeroShotGPTClassifier


def main() -> None:
    """Print one line of JSON for each number of labels and way of asking."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--texts", type=int, default=200, help="Test texts, and texts given to fit.")
    parser.add_argument("--examples", type=int, default=4, help="Examples of a class.")
    given = parser.parse_args()
    skllm_ray.init(local_mode=True)
    for n_labels in given.labels:
        for line in compare(given.model, given.data, n_labels, given.texts, given.examples):
            print(json.dumps(line), flush=True)  # noqa: T201


def compare(model: str, data: Path, n_labels: int, n_texts: int, n_examples: int) -> list[dict[str, Any]]:
    """Return what each way of asking reaches on the same texts."""
    train, test = (_some(pd.read_csv(data / f"{name}.csv"), n_labels) for name in ("train", "test"))
    asked = test.sample(min(n_texts, len(test)), random_state=0)
    fitted = train.sample(min(n_texts, len(train)), random_state=1)
    shown = train.groupby("category").sample(n_examples, random_state=0).sample(frac=1, random_state=0)
    labels = sorted(set(train["category"]))
    found = []
    for prior in (None, "uniform"):
        zero = ZeroShotGPTClassifier(model, label_prior=prior)
        few = FewShotGPTClassifier(model, label_prior=prior)
        ways = [("few-shot", few.fit(shown["text"], shown["category"])), ("zero-shot", zero.fit(None, labels))]
        if prior is not None:
            own = ZeroShotGPTClassifier(model, label_prior=prior)
            ways.append(("zero-shot, texts of fit", own.fit(fitted["text"], fitted["category"])))
        for name, clf in ways:
            began = time.perf_counter()
            answers = clf.classes_[clf.predict_proba(asked["text"]).argmax(axis=1)]
            found.append(
                {
                    "labels": n_labels,
                    "texts": len(asked),
                    "way": name,
                    "label_prior": prior,
                    "macro_f1": round(float(f1_score(asked["category"], answers, average="macro")), 3),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
    return found


def _some(frame: pd.DataFrame, n_labels: int) -> pd.DataFrame:
    labels = sorted(frame["category"].unique())
    chosen = np.random.default_rng(0).choice(labels, n_labels, replace=False)
    return frame[frame["category"].isin(chosen)]


if __name__ == "__main__":
    main()
