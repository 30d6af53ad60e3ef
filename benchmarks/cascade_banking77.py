"""BANKING77 with a student and a stand-in teacher: what share is asked of the teacher, what it costs, and what is true.

    python -m benchmarks.cascade_banking77 --folder banking77

The folder holds ``train.csv`` and ``test.csv`` of BANKING77 (Casanueva and others, 2020; CC BY 4.0): 13,083 questions
of bank customers in 77 categories. The teacher knows the true labels, 3% of which are replaced by others at random, and
counts what it is asked. The student is the default one of `DistilledClassifier`. A row's cost is what the prompt of a
zero-shot classifier would cost at OpenAI's list price, at four characters a token.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin

from skllm_ray.classification import DistilledClassifier, ZeroShotGPTClassifier
from skllm_ray.llm.model_facts import facts_of
from skllm_ray.models._base.student import default_student


class Teacher(ClassifierMixin, BaseEstimator):
    """Gives the labels that it was told, and counts."""

    def __init__(self, noise=0.03):
        self.noise = noise

    def fit(self, X, y):
        rng, y = np.random.default_rng(77), np.asarray(y)
        self.classes_ = np.unique(y)
        wrong = rng.random(len(y)) < self.noise
        self.labels_ = dict(zip(X, np.where(wrong, rng.choice(self.classes_, len(y)), y), strict=True))
        self.n_asked_ = 0
        return self

    def predict(self, X):
        self.n_asked_ += len(X)
        return np.asarray([self.labels_[text] for text in X])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def usd_per_row(texts: list[str], labels: list[str], model: str = "gpt-5.4-mini") -> float:
    """Return what a zero-shot prompt costs on average."""
    price = facts_of(model, "openai").price
    prompts = ZeroShotGPTClassifier(model="gguf::demo").fit(None, labels).render_prompt(texts[:200])
    return float(np.mean([price.cost_usd(len(prompt) // 4, 12) for prompt in prompts]))


def cascades(texts: list[str], truth: np.ndarray, each: float, seeds: int) -> None:
    say("taught  promise  score        asked          USD     sample  differ  right  broken")
    for n_taught in (1000, 2000, 4000):
        teacher = Teacher().fit(texts, truth)
        student = DistilledClassifier(teacher, n_samples=n_taught).fit(texts)
        said = np.asarray([teacher.labels_[text] for text in texts])
        for promise in (0.02, 0.05, 0.10):
            for score in ("probability", "learned"):
                rows = []
                for seed in range(seeds):
                    cascade = student.as_cascade(max_disagreement=promise, score=score, random_state=seed)
                    teacher.n_asked_ = 0
                    found = cascade.predict(texts)
                    asked = teacher.n_asked_ + n_taught
                    rows.append(
                        (asked, cascade.certificate_.n_sampled, (found != said).mean(), (found == truth).mean())
                    )
                asked, sampled, differ, right = np.mean(rows, axis=0)
                broken = sum(row[2] > promise for row in rows)
                say(
                    f"{n_taught:6}  {promise:7.0%}  {score:11}  {asked / len(texts):5.1%} {asked:6.0f}  "
                    f"{asked * each:7.2f}  {sampled:6.0f}  {differ:6.2%}  {right:5.1%}  {broken} of {seeds}"
                )
        if n_taught == 2000:
            say(f"        {cascade.certificate_}")


def speeds(texts: list[str], labels: np.ndarray) -> None:
    """Tell how many rows a second of CPU time the students label."""
    many = texts * 4
    for characters in (True, False):
        student = default_student(2000, characters=characters).fit(texts[:2000], labels[:2000])
        student.predict_proba(texts[:500])
        began = time.process_time()
        student.predict_proba(many)
        rate = len(many) / (time.process_time() - began)
        right = (student.predict(texts[2000:]) == labels[2000:]).mean()
        what = "words and characters" if characters else "words alone"
        say(f"student of {what}: {rate:,.0f} rows/s of CPU time, {right:.1%} right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    frame = pd.concat([pd.read_csv(given.folder / name) for name in ("train.csv", "test.csv")])
    frame = frame.drop_duplicates("text").sample(frac=1, random_state=0)
    texts, truth = frame["text"].tolist(), frame["category"].to_numpy()
    each = usd_per_row(texts, sorted(set(truth)))
    say(f"{len(texts):,} different texts; the teacher alone: {len(texts) * each:.2f} USD, {1e3 * each:.3f} for 1,000")
    speeds(texts, truth)
    cascades(texts, truth, each, given.seeds)


if __name__ == "__main__":
    main()
