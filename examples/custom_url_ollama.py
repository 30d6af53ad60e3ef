"""Classify with a model that Ollama serves: `ollama pull llama3`, then `ollama serve`."""

import click

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig


def main() -> None:
    """Ask the local server."""
    SKLLMConfig.set_gpt_url("http://localhost:11434/v1")
    classifier = ZeroShotGPTClassifier(model="custom_url::llama3", on_error="coerce")
    classifier.fit(None, ["billing", "delivery", "product"])
    click.echo(classifier.predict(["The parcel came a week late.", "I was charged twice."]).tolist())


if __name__ == "__main__":
    main()
