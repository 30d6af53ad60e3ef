"""GGUF: ours against scikit-llm's way and against llama.cpp's own rate, in one run.

``make bench-gguf`` runs it; ``--help`` lists what it takes. On a machine with a GPU and a llama-cpp-python that was
built for it, ``--gpu-layers -1 --sizes 1B --widths 1,2,4,8,16,32,64`` measures the same there.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.random_model import SHAPES, make_model
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.tasks import ChatRequest, ZeroShotTask

LABELS = ("positive", "negative", "neutral")
FORCED = 10
"""Tokens that the sequential way writes per row: those of ``{"label": "positive"}`` in a common tokenizer."""
PADDING = "Judge by what the writer felt and not by what the thing was, and by the text as a whole. "
"""Brings the instructions to about 200 tokens."""
WORDS = """the a this phone book room staff price battery screen meal train delivery was is seems arrived works broke
never always very quite rather not good bad slow quick friendly rude late early again today for us with my and but
""".split()  # noqa: SIM905


def make_texts(n: int, n_words: int = 40, seed: int = 0) -> list[str]:
    """Return `n` texts of `n_words` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n_words)) for _ in range(n)]


def make_requests(n: int) -> list[ChatRequest]:
    """Return the library's own zero-shot prompts, with instructions of about 200 tokens."""
    task = ZeroShotTask(LABELS)
    template = task.template.replace("Labels:", f"{PADDING * 6}\n\nLabels:")
    return ZeroShotTask(LABELS, template).render(make_texts(n))


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def prompt_rate(engine: Engine, n_tokens: int) -> Callable[[], Any]:
    """Return what decodes `n_tokens` as llama.cpp reads a prompt: one sequence, no logits but the last."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(300, engine.n_vocab, engine.n_batch).astype(np.int32)

    def work() -> None:
        done = 0
        while done < n_tokens:
            part = tokens[: min(engine.n_batch, n_tokens - done)]
            engine.forget()
            batch = engine.new_batch()
            batch.add(part, 0, 0, last_wanted=True)
            engine.decode(batch)
            done += len(part)

    return work


def scoring(path: Path, rows: int, rounds: int, threads: int, gpu_layers: int) -> dict[str, Any]:
    """Measure rows/s of classification three ways."""
    requests = make_requests(rows)
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    peer = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers, verbose=False
    )
    engine = backend._engine
    few = max(4, rows // 8)
    end = int(engine.lib.llama_vocab_eos(engine.vocab))

    def sequential() -> None:
        for request in requests[:few]:
            messages: Any = list(request.messages)
            peer.create_chat_completion(
                messages,
                temperature=0.0,
                max_tokens=FORCED,
                logit_bias={end: -100.0},
            )

    backend.complete(requests[:few])
    before = engine.n_decoded
    backend.complete(requests)
    n_tokens = engine.n_decoded - before
    limit = Engine(EngineOptions(str(path), None, gpu_layers, threads))
    found: dict[str, list[float]] = {"sequential": [], "ours": [], "limit": []}
    for _ in range(rounds):
        found["sequential"].append(few / timed(sequential))
        found["ours"].append(rows / timed(lambda: backend.complete(requests)))
        found["limit"].append(rows / timed(prompt_rate(limit, n_tokens)))
    for part in (backend, limit):
        part.close()
    peer.close()

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(found["ours"], found[other], strict=True))

    return {
        "rows_per_s": {name: statistics.median(values) for name, values in found.items()},
        "tokens_per_row": n_tokens / rows,
        "times_sequential": ratio("sequential"),
        "share_of_limit": ratio("limit"),
    }


def free_text(path: Path, widths: Sequence[int], rounds: int, threads: int, gpu_layers: int) -> list[dict[str, Any]]:
    """Measure tokens/s of generation at several widths."""
    n_tokens, lines = 48, []
    task_messages = [request.messages for request in make_requests(max(widths))]
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 200}
    peer = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers, verbose=False
    )
    limit = Engine(EngineOptions(str(path), None, gpu_layers, threads))
    chat = ChatFormat(limit)
    free = [ChatRequest(messages, max_output_tokens=n_tokens) for messages in task_messages]
    json_requests = [ChatRequest(m, json_schema=schema, max_output_tokens=n_tokens) for m in task_messages]
    prompts = [chat.tokens(chat.render(messages)) for messages in task_messages]

    def sequential() -> int:
        written = 0
        for messages in task_messages[:2]:
            answer: Any = peer.create_chat_completion(list(messages), temperature=0.0, max_tokens=n_tokens)
            written += answer["usage"]["completion_tokens"]
        return written

    def bare(width: int) -> int:
        """Decode the prompts, then one token of each sequence at a time."""
        batch = Batch()
        limit.forget()
        for sequence, prompt in enumerate(prompts[:width]):
            batch.clear()
            batch.add(prompt[:16], 0, sequence, last_wanted=True)
            limit.decode(batch)
        for step in range(n_tokens):
            batch.clear()
            for sequence in range(width):
                batch.add([400], 16 + step, sequence, last_wanted=True)
            limit.decode(batch).argmax(axis=1)
        return width * n_tokens

    def ours(requests: Sequence[ChatRequest]) -> int:
        return sum(reply.usage.completion_tokens for reply in backend.complete(requests))

    for width in widths:
        rates: dict[str, list[float]] = {"sequential": [], "ours": [], "ours, JSON schema": [], "limit": []}
        works: dict[str, Callable[[], int]] = {
            "sequential": sequential,
            "ours": lambda width=width: ours(free[:width]),  # type: ignore[misc]
            "ours, JSON schema": lambda width=width: ours(json_requests[:width]),  # type: ignore[misc]
            "limit": lambda width=width: bare(width),  # type: ignore[misc]
        }
        works["ours"]()
        for _ in range(rounds):
            for name, work in works.items():
                started = time.perf_counter()
                written = work()
                rates[name].append(written / (time.perf_counter() - started))
        lines.append({"width": width, "tokens_per_s": {name: statistics.median(v) for name, v in rates.items()}})
    backend.close()
    limit.close()
    peer.close()
    return lines


def through_ray(path: Path, rows: int, rounds: int, threads: int, gpu_layers: int) -> dict[str, Any]:
    """Measure rows/s of ``predict`` against the bare engine with as many threads, and a model actor's memory."""
    import skllm_ray
    from skllm_ray.classification import ZeroShotGPTClassifier
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.execution.model_pool import PooledBackend
    from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache

    SKLLMConfig.set_gguf_max_gpu_layers(gpu_layers)
    SKLLMConfig.set_gguf_resources(num_cpus=threads, max_replicas=1)
    skllm_ray.init(num_cpus=threads + 1)
    texts = make_texts(rows)
    classifier = ZeroShotGPTClassifier(model=f"gguf::{path}").fit(None, LABELS)
    requests = ZeroShotTask(tuple(classifier.classes_)).render(texts)
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    classifier.predict(texts[:300])
    backend.complete(requests[:64])
    rates: dict[str, list[float]] = {"bare engine": [], "predict": []}
    for _ in range(rounds):
        rates["bare engine"].append(rows / timed(lambda: backend.complete(requests)))
        rates["predict"].append(rows / timed(lambda: classifier.predict(texts)))
    pool = ModelCache.get(f"gguf::{path}")
    assert isinstance(pool, PooledBackend)
    memory = [replica.memory_mb for replica in pool.replicas()]
    backend.close()
    skllm_ray.shutdown()
    share = [a / b for a, b in zip(rates["predict"], rates["bare engine"], strict=True)]
    return {
        "rows_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "share": statistics.median(share),
        "actor_resident_mb": memory,
    }


@click.command()
@click.option("--sizes", default="demo,20M,250M", show_default=True, help="Of demo, 20M, 250M, 1B.")
@click.option("--rows", default=0, help="Texts to classify; 0 chooses by size.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--gpu-layers", default=0, show_default=True, help="0: CPU, -1: all layers on the GPU.")
@click.option("--widths", default="1,8,32", show_default=True, help="Sequences generated at once.")
@click.option("--ray/--no-ray", default=True, show_default=True, help="Measure predict through Ray as well.")
@click.option("--models", default=".benchmarks/models", show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=".benchmarks/gguf.json", show_default=True, type=click.Path(path_type=Path))
def main(
    sizes: str,
    rows: int,
    rounds: int,
    threads: int,
    gpu_layers: int,
    widths: str,
    ray: bool,
    models: Path,
    out: Path,
) -> None:
    """Measure GGUF models: scikit-llm's way, ours, and llama.cpp's own rate, in turn."""
    console = Console()
    results: dict[str, Any] = {"threads": threads, "gpu_layers": gpu_layers, "models": {}}
    for size in sizes.split(","):
        path = DEMO_FILE if size == "demo" else make_model(SHAPES[size], models.resolve() / f"{size}.gguf")
        n_rows = rows or {"demo": 1024, "20M": 384, "250M": 64}.get(size, 64)
        one: dict[str, Any] = {"scoring": scoring(path, n_rows, rounds, threads, gpu_layers)}
        one["free_text"] = free_text(path, [int(width) for width in widths.split(",")], rounds, threads, gpu_layers)
        if ray:
            one["ray"] = through_ray(path, 4 * n_rows, rounds, threads, gpu_layers)
        results["models"][size] = one
        show(console, size, one)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    console.print(f"Written to {out}")


def show(console: Console, size: str, one: dict[str, Any]) -> None:
    """Print one model's tables."""
    found = one["scoring"]
    table = Table(title=f"{size}: classification, {found['tokens_per_row']:.0f} tokens decoded per row")
    for column in ("", "rows/s", "ours is"):
        table.add_column(column, justify="left" if not column else "right")
    rates = found["rows_per_s"]
    table.add_row("chat completions, one by one", f"{rates['sequential']:.1f}", f"{found['times_sequential']:.2f} ×")
    table.add_row("ours", f"{rates['ours']:.1f}", "")
    table.add_row("llama.cpp's prompt rate, same tokens", f"{rates['limit']:.1f}", f"{found['share_of_limit']:.0%}")
    if "ray" in one:
        rates = one["ray"]["rows_per_s"]
        table.add_row("engine in one process, shorter prompt", f"{rates['bare engine']:.1f}", "")
        table.add_row("predict through Ray, the same", f"{rates['predict']:.1f}", f"{one['ray']['share']:.0%}")
    console.print(table)
    table = Table(title=f"{size}: free text, tokens/s")
    columns = list(one["free_text"][0]["tokens_per_s"])
    for column in ("sequences at once", *columns):
        table.add_column(column, justify="right")
    for line in one["free_text"]:
        table.add_row(str(line["width"]), *(f"{line['tokens_per_s'][column]:.0f}" for column in columns))
    console.print(table)


if __name__ == "__main__":
    main()
