"""Serve a scikit-learn classifier as if it were a language model: OpenAI's API, on this machine, without a network.

python examples/stand_in_server.py --train train.csv --port 8011

It stands in for a capable model, so that a page or a test can show what one does with such a model. It is none: it has
learned from labelled texts, and its answers say nothing about the quality of any language model.
"""

import contextlib
import threading
from pathlib import Path
from typing import Any

import click
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skllm_ray.testing import ChatServer, LabelAnswer, prompt_of


@click.command()
@click.option("--train", type=click.Path(path_type=Path, exists=True), required=True, help="Labelled texts, as CSV.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="category", show_default=True)
@click.option("--port", default=8011, show_default=True)
@click.option("--latency-s", default=0.3, show_default=True, help="How long every answer takes.")
def main(train: Path, text_column: str, label_column: str, port: int, latency_s: float) -> None:
    """Learn from labelled texts, and answer questions about others until Ctrl-C."""
    table = pd.read_csv(train)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=20, max_iter=200)).fit(table[text_column], table[label_column])

    def answer(body: dict[str, Any]) -> LabelAnswer:
        *_, text, _ = prompt_of(body).rsplit("```", 2)  # the text stands between the last two fences of the prompt
        (shares,) = model.predict_proba([text.strip()])
        return LabelAnswer(dict(zip(model.classes_.tolist(), shares.tolist(), strict=True)))

    with ChatServer(answer, latency_s=latency_s, port=port) as server:
        click.echo(f"A classifier of {len(model.classes_)} labels, no language model, serves at {server.url}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
