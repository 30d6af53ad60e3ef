"""What a row costs by the number of labels: one by one, the best label, and the probabilities of all.

Texts and category names come from a CSV file with the columns ``text`` and ``category``, as BANKING77 has; without one
they are made up.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.tasks import ChatRequest, PromptStyle, ZeroShotTask

WRITTEN = 10
"""Tokens that are written one by one for each row."""
TOPICS = ("card", "transfer", "exchange rate", "cash withdrawal", "account")
QUESTIONS = """why can i not pay with my card abroad when was the money sent to me how long does it take until
a bank changes what is lost""".split()  # noqa: SIM905
_MANY = 100  # labels, from which on rows are few


def label_sets(data: Path | None, counts: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return label sets of the sizes asked for."""
    names = sorted(pd.read_csv(data)["category"].unique()) if data else []
    known = [name.replace("_", " ").lower() for name in names]
    made_up = (" ".join(words) for words in product(*[list(dict.fromkeys(QUESTIONS))] * 3))
    return {n: TOPICS if n == len(TOPICS) else (*known[:n], *islice(made_up, max(0, n - len(known)))) for n in counts}


def question_texts(data: Path | None, n: int) -> list[str]:
    """Return `n` short texts."""
    rng = np.random.default_rng(0)
    if data is None:
        return [" ".join(rng.choice(QUESTIONS, rng.integers(6, 20))) for _ in range(n)]
    texts = pd.read_csv(data)["text"].tolist()
    return [texts[i] for i in rng.permutation(len(texts))[:n]]


def by_labels(
    path: Path, data: Path | None, counts: Sequence[int], rows: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Measure milliseconds a row, and the memory that is taken beyond the loaded model, for each number of labels."""
    backend = GGUFBackend(path, "gguf::bench", 0, threads)
    # scikit-llm leaves the threads to llama-cpp-python, which generates with half of the cores.
    peers = {
        "one by one": llama_cpp.Llama(str(path), n_ctx=backend.n_ctx, verbose=False),
        "one by one, all threads": llama_cpp.Llama(
            str(path), n_ctx=backend.n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
        ),
    }
    found = []
    for n_labels, labels in label_sets(data, counts).items():
        n_rows = rows if n_labels < _MANY else max(2, rows // 32)
        requests = ZeroShotTask(labels).render(question_texts(data, n_rows))
        found.append({"labels": n_labels, "rows": n_rows, **_costs(backend, peers, requests, rounds)})
    for part in (backend, *peers.values()):
        part.close()
    return found


def _costs(
    backend: GGUFBackend, peers: dict[str, llama_cpp.Llama], requests: Sequence[ChatRequest], rounds: int
) -> dict[str, Any]:
    few = requests[: max(2, min(12, len(requests) // 4))]
    works: dict[str, tuple[Callable[[], Any], int]] = {
        name: (lambda peer=peer: _one_by_one(backend, peer, few), len(few))  # type: ignore[misc]
        for name, peer in peers.items()
    }
    for name, settings in (
        ("predict", {"best_only": True, "exact": True}),
        ("predict_proba", {"exact": True}),
        ("predict_proba, not exact", {}),
    ):
        asked = [replace(one, choices=replace(one.choices, **settings)) for one in requests]  # type: ignore[type-var, arg-type]
        works[name] = (lambda asked=asked: backend.complete(asked), len(asked))  # type: ignore[misc]
    backend.complete(requests[:1])
    for peer in peers.values():  # it keeps what prompts share, which is long where labels are many
        _one_by_one(backend, peer, requests[:1])
    resident = psutil.Process().memory_info().rss
    seconds: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, n) in works.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            work()
            seconds[name].append((time.perf_counter() - wall_s) / n)
            cpu[name].append((time.process_time() - cpu_s) / n)
    return {
        "ms": {name: 1e3 * min(values) for name, values in seconds.items()},
        "cpu_ms": {name: 1e3 * min(values) for name, values in cpu.items()},
        "times": {
            name: statistics.median(a / b for a, b in zip(seconds["one by one"], values, strict=True))
            for name, values in seconds.items()
        },
        "more_kb_a_row": (psutil.Process().memory_info().rss - resident) / 1e3 / len(requests),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _one_by_one(backend: GGUFBackend, peer: llama_cpp.Llama, requests: Sequence[ChatRequest]) -> None:
    """Let the model write, behind the prompts that ours has, `WRITTEN` tokens each; what prompts share is cached."""
    chat = backend._chat(PromptStyle())
    for request in requests:
        tokens = chat.tokens(chat.render(request.messages))
        peer.create_completion(tokens, temperature=0.0, max_tokens=WRITTEN, logit_bias={peer.token_eos(): -100.0})


def show_by_labels(console: Console, name: str, found: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`by_labels` found."""
    table = Table(title=f"{name}: ms a row by labels (of one by one; CPU ms)")
    for column in ("labels", "rows", *found[0]["ms"], "kB a row", "peak MB"):
        table.add_column(column, justify="right")
    for line in found:
        cells = [f"{ms:.1f} ({line['times'][way]:.2f} ×; {line['cpu_ms'][way]:.0f})" for way, ms in line["ms"].items()]
        memory = f"{line['more_kb_a_row']:.0f}", f"{line['peak_mb']:.0f}"
        table.add_row(str(line["labels"]), str(line["rows"]), *cells, *memory)
    console.print(table)
