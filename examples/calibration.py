"""Calibrate a classifier's probabilities with scikit-learn, from labelled texts of your own.

python examples/calibration.py

A language model's probabilities are those of its words, not of being right. CalibratedClassifierCV learns the
difference from a few hundred labelled texts; FrozenEstimator tells it that the classifier itself is not to be fitted
again.
"""

import click
from rich.console import Console
from rich.table import Table
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.datasets import get_reviews_dataset


@click.command()
@click.option("--model", default="gguf::demo", show_default=True)
@click.option("--local-mode", is_flag=True, help="Run in this process, without Ray.")
def main(model: str, local_mode: bool) -> None:
    """Compare a classifier's probabilities before and after calibration, on texts that neither has seen."""
    skllm_ray.init(local_mode=local_mode)
    texts, labels = get_reviews_dataset()
    known, unseen, y_known, y_unseen = train_test_split(texts, labels, test_size=0.5, stratify=labels, random_state=0)

    zero_shot = ZeroShotGPTClassifier(model=model).fit(None, sorted(set(labels)))
    calibrated = CalibratedClassifierCV(FrozenEstimator(zero_shot), method="sigmoid").fit(known, y_known)

    table = Table(title=f"{model} on {len(unseen)} unseen reviews", caption="log loss: lower is better")
    for column in ("", "accuracy", "log loss", "mean confidence"):
        table.add_column(column, justify="right" if column else "left")
    for name, classifier in {"as it is": zero_shot, f"calibrated on {len(known)}": calibrated}.items():
        probabilities = classifier.predict_proba(unseen)
        chosen = classifier.classes_[probabilities.argmax(axis=1)]
        table.add_row(
            name,
            f"{accuracy_score(y_unseen, chosen):.1%}",
            f"{log_loss(y_unseen, probabilities):.3f}",
            f"{probabilities.max(axis=1).mean():.1%}",
        )
    Console().print(table)
    skllm_ray.shutdown()


if __name__ == "__main__":
    main()
