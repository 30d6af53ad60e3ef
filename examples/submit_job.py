"""A script for a cluster: one model actor on each node that has room.

ray job submit --address http://HEAD:8265 --working-dir . -- python examples/submit_job.py
"""

import click

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.datasets import get_topics_dataset


def main() -> None:
    """Join the cluster that runs this job, and classify the built-in news."""
    skllm_ray.init()
    texts, topics = get_topics_dataset()
    classifier = ZeroShotGPTClassifier(model="gguf::demo").fit(texts, topics)
    click.echo(f"accuracy {classifier.score(texts, topics):.0%} on {len(texts)} texts")


if __name__ == "__main__":
    main()
