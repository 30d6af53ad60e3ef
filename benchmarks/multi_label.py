"""How to choose several labels: growing an answer against other ways, on texts that the demo model was not trained on.

``python -m benchmarks.multi_label`` runs it; it needs the extra ``train``, whose generator writes the texts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import Prompts
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import score
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError
from skllm_ray.tasks import ChatRequest, MultiLabelZeroShotTask, PromptStyle
from training.demo_model.generator import draw_example, draw_task

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


def draw(n_tasks: int, n_texts: int, seed: int) -> tuple[list[ChatRequest], list[set[str]]]:
    """Return requests, and the labels that are right."""
    rng = random.Random(seed)
    requests, truths = [], []
    for _ in range(n_tasks):
        task = draw_task(rng, "aspects")
        examples = [draw_example(rng, task) for _ in range(n_texts)]
        requests += MultiLabelZeroShotTask(tuple(task.labels), task.max_cats).render([item.text for item in examples])
        truths += [set(item.answer) for item in examples]
    return requests, truths


def parse(text: str | None) -> set[str]:
    try:
        return set(json.loads(text or "")["label"])
    except (ValueError, TypeError, KeyError):
        return set()


def first_step(backend: GGUFBackend, requests: Sequence[ChatRequest]) -> list[dict[str, float]]:
    """Return each label's probability to be named first, given that any is."""
    chat = Prompts(backend._chat(PromptStyle()))
    choices = [request.choices for request in requests]
    split = [
        backend._split_many(chat.render(request.messages), request, [], one.labels if one else (), chat)
        for request, one in zip(requests, choices, strict=True)
    ]
    found = []
    scored = score(backend._engine, [head for head, _ in split], [trie for _, trie in split])
    for one, scores in zip(choices, scored, strict=True):
        if isinstance(scores, ContextOverflowError) or one is None:
            raise TypeError("a text does not fit")
        values = np.exp(scores[:-1] - np.logaddexp.reduce(scores[:-1]))
        found.append(dict(zip(one.labels, values.tolist(), strict=True)))
    return found


@click.command()
@click.option("--tasks", default=20, show_default=True, help="Label lists.")
@click.option("--texts", default=20, show_default=True, help="Texts for each.")
@click.option("--seed", default=7001, show_default=True)
def main(tasks: int, texts: int, seed: int) -> None:
    """Compare ways of choosing several labels: exact sets, micro-F1, rows/s."""
    requests, truths = draw(tasks, texts, seed)
    backend = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    schemas = [
        replace(request, choices=None, json_schema=request.choices.json_schema(), max_output_tokens=96)
        for request in requests
        if request.choices is not None
    ]
    free = [replace(request, json_schema=None) for request in schemas]

    def written(asked: Sequence[ChatRequest]) -> Callable[[], list[set[str]]]:
        return lambda: [parse(reply.text) for reply in backend.complete(asked)]

    def above(threshold: float) -> Callable[[], list[set[str]]]:
        return lambda: [{k for k, v in row.items() if v >= threshold} for row in first_step(backend, requests)]

    ways: dict[str, Callable[[], list[set[str]]]] = {
        "grow the answer by the likeliest label (ours)": written(requests),
        "write under a grammar, token by token": written(schemas),
        "write freely, as scikit-llm does": written(free),
        **{f"all labels above {threshold:g} at the first step": above(threshold) for threshold in THRESHOLDS},
    }
    table = Table(title=f"{len(requests)} generated reviews, gguf::demo")
    for column in ("", "exact sets", "micro-F1", "rows/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, way in ways.items():
        started = time.perf_counter()
        found = way()
        rate = len(requests) / (time.perf_counter() - started)
        hits = sum(len(a & b) for a, b in zip(found, truths, strict=True))
        f1 = 2 * hits / (sum(map(len, found)) + sum(map(len, truths)))
        exact = float(np.mean([a == b for a, b in zip(found, truths, strict=True)]))
        table.add_row(name, f"{exact:.1%}", f"{f1:.3f}", f"{rate:.0f}")
    backend.close()
    Console().print(table)


if __name__ == "__main__":
    main()
