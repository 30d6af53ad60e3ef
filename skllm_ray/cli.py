"""The command line: ``skllm-ray``."""

from __future__ import annotations

import click

from skllm_ray import __version__
from skllm_ray.errors import SkllmRayError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skllm-ray")
def main() -> None:
    """scikit-llm's scikit-learn API for language models, on a Ray cluster."""


@main.command()
@click.option("--actors", default=2, show_default=True, type=click.IntRange(1, 64), help="Model actors to start.")
@click.option("--model", default="gguf::demo", show_default=True, help="The GGUF model that answers.")
@click.option("--rows", default=300, show_default=True, type=click.IntRange(10), help="Reviews to classify.")
@click.option("--address", default=None, help="A Ray cluster's address; by default RAY_ADDRESS, else this machine.")
def demo(actors: int, model: str, rows: int, address: str | None) -> None:
    """Classify built-in customer reviews with model actors and show how well it went."""
    from skllm_ray.demo import run_demo

    try:
        run_demo(actors=actors, model=model, n_rows=rows, address=address)
    except SkllmRayError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
