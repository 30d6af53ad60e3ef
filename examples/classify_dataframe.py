"""Classify a column of a DataFrame and write the details beside it.

python examples/classify_dataframe.py --output labelled.csv
"""

from pathlib import Path

import click
import pandas as pd

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.datasets import get_reviews_dataset


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The CSV file to write.")
@click.option("--model", default="gguf::demo", show_default=True)
@click.option("--rows", default=100, show_default=True)
@click.option("--local-mode", is_flag=True, help="Run in this process, without Ray.")
def main(output: Path, model: str, rows: int, local_mode: bool) -> None:
    """Classify the first ROWS built-in reviews."""
    skllm_ray.init(local_mode=local_mode)
    texts, labels = get_reviews_dataset()
    frame = pd.DataFrame({"text": texts, "label": labels}).head(rows)
    classifier = ZeroShotGPTClassifier(model=model).fit(None, sorted(set(labels)))
    frame = frame.join(classifier.predict_details(frame["text"]))
    frame.to_csv(output, index=False)
    click.echo(f"{len(frame)} rows, accuracy {(frame['prediction'] == frame['label']).mean():.0%}, in {output}")
    skllm_ray.shutdown()


if __name__ == "__main__":
    main()
