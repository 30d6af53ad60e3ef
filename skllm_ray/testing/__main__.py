"""``python -m skllm_ray.testing`` serves the fake chat server until Ctrl-C; ``--help`` shows the options."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import Any

import click

from skllm_ray.testing.chat_forms import default_answer
from skllm_ray.testing.chat_server import ChatServer
from skllm_ray.testing.script import StatusFault, WireFault


@click.command()
@click.option("--port", default=8008, show_default=True)
@click.option("--latency-s", default=0.0, show_default=True, help="How long every answer takes.")
@click.option("--key", default=None, help="The API key to insist on.")
@click.option("--requests-per-minute", default=None, type=int)
@click.option("--tokens-per-minute", default=None, type=int)
@click.option("--reserve-output", is_flag=True, help="Charge the most tokens that a request allows its answer.")
@click.option("--faults", default=0.0, show_default=True, help="The share of requests that fail in a passing way.")
def serve(port: int, latency_s: float, faults: float, **quota: Any) -> None:
    """Serve an OpenAI-compatible API that answers with the label that the prompt names most often."""
    passing: list[StatusFault | WireFault] = [
        WireFault.DROP,
        WireFault.HALF,
        WireFault.HTML,
        WireFault.MALFORMED_JSON,
        StatusFault(500),
    ]

    def answer(body: dict[str, Any]) -> str | StatusFault | WireFault:
        return random.choice(passing) if random.random() < faults else default_answer(body)

    with ChatServer(answer, latency_s=latency_s, port=port, **quota) as server:
        click.echo(f"Serving at {server.url}; Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        click.echo(f"{server.n_requests} requests, {server.n_refused} refused for the quota.")


if __name__ == "__main__":
    serve()
