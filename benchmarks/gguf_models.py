"""GGUF: ours against scikit-llm's way and against llama.cpp's own rate, in one run.

``make bench-gguf`` runs it; ``--help`` lists what it takes. By default it measures what a row costs by labels, on the
real model that ``make conformance`` downloads, if it is there, and on random weights with small and large vocabularies;
``--full`` adds llama.cpp's own rates, free text and Ray, which takes long. On a machine with a GPU and a
llama-cpp-python that was built for it, ``--gpu-layers -1 --sizes 1B --widths 1,2,4,8,16,32,64`` measures it.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import llama_cpp
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.gguf_labels import by_labels, show_by_labels
from benchmarks.random_model import SHAPES, make_model
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import memory_needed
from skllm_ray.tasks import ChatRequest, ZeroShotTask

LABELS = ("positive", "negative", "neutral")
REAL_MODEL = Path(os.environ.get("SKLLM_RAY_REAL_MODEL", ".conformance/gemma3-270m.gguf"))
FORCED = 10
"""Tokens that the sequential way writes per row: those of ``{"label": "positive"}`` in a common tokenizer."""
PADDING = "Judge by what the writer felt and not by what the thing was, and by the text as a whole. "
"""Brings the instructions to about 200 tokens."""
TEMPLATE = ZeroShotTask(LABELS).template.replace("Labels:", f"{PADDING * 4}\n\nLabels:")
WORDS = """the a this phone book room staff price battery screen meal train delivery was is seems arrived works broke
never always very quite rather not good bad slow quick friendly rude late early again today for us with my and but
""".split()  # noqa: SIM905


def make_texts(n: int, n_words: int = 40, seed: int = 0) -> list[str]:
    """Return `n` texts of `n_words` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n_words)) for _ in range(n)]


def make_requests(n: int) -> list[ChatRequest]:
    """Return the library's own zero-shot prompts, with instructions of about 200 tokens."""
    return ZeroShotTask(LABELS, TEMPLATE).render(make_texts(n))


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_by_one(peer: llama_cpp.Llama, requests: Sequence[ChatRequest]) -> None:
    """Let the model write its answers as scikit-llm does, ``FORCED`` tokens each."""
    for request in requests:
        messages: Any = list(request.messages)
        never_ends = {peer.token_eos(): -100.0}
        peer.create_chat_completion(messages, temperature=0.0, max_tokens=FORCED, logit_bias=never_ends)


class Bare:
    """llama.cpp by itself, one sequence, as its own benchmark of prompt processing does it.

    `flash` is llama.cpp's default; without it, attention is computed as llama-cpp-python does by default.
    """

    def __init__(self, path: Path, threads: int, gpu_layers: int, n_ctx: int, *, flash: bool = True) -> None:
        self.n_batch = min(512, n_ctx)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, self.n_batch, self.n_batch
        context.n_threads = context.n_threads_batch = threads
        if not flash:
            context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.memory = llama_cpp.llama_get_memory(self.context)
        n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.tokens = np.random.default_rng(0).integers(300, n_vocab, n_ctx).astype(np.int32)

    def decode(self, n_tokens: int) -> None:
        """Decode `n_tokens` at the next positions; only the last one's logits are computed."""
        pointer = self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        for start in range(0, n_tokens, self.n_batch):
            batch = llama_cpp.llama_batch_get_one(pointer, min(self.n_batch, n_tokens - start))
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")

    def read(self, n_tokens: int, n_prefix: int) -> None:
        """Read `n_tokens` in parts as large as a batch, each behind the same `n_prefix` tokens."""
        llama_cpp.llama_memory_clear(self.memory, False)
        if n_prefix:
            self.decode(n_prefix)
        done = 0
        while done < n_tokens:
            part = min(self.n_batch, n_tokens - done)
            llama_cpp.llama_memory_seq_rm(self.memory, 0, n_prefix, -1)
            self.decode(part)
            done += part
        llama_cpp.llama_synchronize(self.context)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def scoring(path: Path, rows: int, rounds: int, threads: int, gpu_layers: int, widths: Sequence[int]) -> dict[str, Any]:
    """Measure rows/s of classification three ways, scikit-llm's with its own settings and with all threads."""
    requests = make_requests(rows)
    exact = [replace(request, choices=replace(request.choices, exact=True)) for request in requests]  # type: ignore[type-var]
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    engine = backend._engine
    # scikit-llm leaves the threads to llama-cpp-python, which generates with half of the cores.
    scikit_llm = llama_cpp.Llama(str(path), n_ctx=engine.n_ctx, n_gpu_layers=gpu_layers, verbose=False)
    all_threads = llama_cpp.Llama(
        str(path),
        n_ctx=engine.n_ctx,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=gpu_layers,
        verbose=False,
    )
    few = min(max(4, rows // 8), 96)
    backend.complete(requests[:few])
    before = engine.n_decoded
    backend.complete(requests)
    n_tokens, n_prefix = engine.n_decoded - before, engine.n_prefix
    bare = Bare(path, threads, gpu_layers, engine.n_ctx)
    bare_exact = Bare(path, threads, gpu_layers, engine.n_ctx, flash=False)
    for one in (bare, bare_exact):
        one.read(engine.n_batch, 0)
    works: dict[str, Callable[[], Any]] = {
        "sequential": lambda: one_by_one(scikit_llm, requests[:few]),
        "sequential, all threads": lambda: one_by_one(all_threads, requests[:few]),
        "ours": lambda: backend.complete(requests),
        "ours, exact probabilities": lambda: backend.complete(exact),
        "limit": lambda: bare.read(n_tokens, n_prefix),
        "limit, exact attention": lambda: bare_exact.read(n_tokens, n_prefix),
        "limit, empty context": lambda: bare.read(n_tokens, 0),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append((few if name.startswith("sequential") else rows) / timed(work))
    at_widths = []
    for width in widths:
        seconds = timed(lambda width=width: [backend.complete(requests[i : i + width]) for i in range(0, rows, width)])  # type: ignore[misc]
        at_widths.append({"width": width, "rows_per_s": rows / seconds})
    for part in (backend, bare, bare_exact, scikit_llm, all_threads):
        part.close()

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(found["ours"], found[other], strict=True))

    return {
        "rows_per_s": {name: statistics.median(values) for name, values in found.items()},
        "tokens_per_row": n_tokens / rows,
        "n_prefix": n_prefix,
        "times_sequential": ratio("sequential"),
        "times_sequential_all_threads": ratio("sequential, all threads"),
        "share_of_limit": ratio("limit"),
        "share_of_limit_exact_attention": ratio("limit, exact attention"),
        "share_of_limit_empty_context": ratio("limit, empty context"),
        "memory": str(memory_needed(str(path))),
        "at_widths": at_widths,
    }


def free_text(path: Path, widths: Sequence[int], rounds: int, threads: int, gpu_layers: int) -> list[dict[str, Any]]:
    """Measure tokens/s of generation at several widths."""
    n_written, lines = 48, []
    task_messages = [request.messages for request in make_requests(max(widths))]
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 200}
    peer = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers, verbose=False
    )
    limit = Engine(EngineOptions(str(path), None, gpu_layers, threads))
    chat = ChatFormat(limit)
    free = [ChatRequest(messages, max_output_tokens=n_written) for messages in task_messages]
    json_requests = [ChatRequest(m, json_schema=schema, max_output_tokens=n_written) for m in task_messages]
    prompts = [chat.tokens(chat.render(messages)) for messages in task_messages]

    def sequential() -> int:
        written = 0
        for messages in task_messages[:2]:
            answer: Any = peer.create_chat_completion(list(messages), temperature=0.0, max_tokens=n_written)
            written += answer["usage"]["completion_tokens"]
        return written

    def bare(width: int) -> int:
        """Decode the prompts, then one token of each sequence at a time."""
        batch = Batch()
        limit.forget()
        n_begun = min(16, limit.n_ctx // width // 2)
        n_tokens = min(48, limit.n_ctx // width - n_begun)  # what fits into the context
        for sequence, prompt in enumerate(prompts[:width]):
            batch.clear()
            batch.add(prompt[:n_begun], 0, sequence, last_wanted=True)
            limit.decode(batch)
        for step in range(n_tokens):
            batch.clear()
            for sequence in range(width):
                batch.add([400], n_begun + step, sequence, last_wanted=True)
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
        found = {name: statistics.median(values) for name, values in rates.items()}

        def times(other: str, rates: dict[str, list[float]] = rates) -> float:
            return statistics.median(a / b for a, b in zip(rates["ours"], rates[other], strict=True))

        lines.append(
            {
                "width": width,
                "tokens_per_s": found,
                "times_sequential": times("sequential"),
                "share_of_limit": times("limit"),
            }
        )
    backend.close()
    limit.close()
    peer.close()
    return lines


def through_ray(path: Path, rows: int, rounds: int, threads: int, gpu_layers: int) -> dict[str, Any]:
    """Measure rows/s of ``predict`` against the bare engine with as many threads, and model actors' memory."""
    import skllm_ray
    from skllm_ray.classification import ZeroShotGPTClassifier
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.execution.model_pool import PooledBackend
    from skllm_ray.llm.open_models import ModelCache

    SKLLMConfig.set_gguf_max_gpu_layers(gpu_layers)
    SKLLMConfig.set_gguf_resources(num_cpus=threads, max_replicas=1)
    skllm_ray.init(num_cpus=threads + 1)
    name, texts = f"gguf::{path}", make_texts(rows)
    classifier = ZeroShotGPTClassifier(model=name, prompt_template=TEMPLATE).fit(None, LABELS)
    requests = ZeroShotTask(tuple(classifier.classes_), TEMPLATE).render(texts)
    backend = GGUFBackend(path, "gguf::bench", gpu_layers, threads)
    peer = llama_cpp.Llama(str(path), n_ctx=backend.n_ctx, n_gpu_layers=gpu_layers, verbose=False)
    few = min(max(4, rows // 8), 96)
    works: dict[str, Callable[[], Any]] = {
        "sequential": lambda: one_by_one(peer, requests[:few]),
        "bare engine": lambda: backend.complete(requests),
        "predict": lambda: classifier.predict(texts),
    }

    def in_turn() -> tuple[dict[str, float], list[dict[str, float]]]:
        """Return rows/s of each, and the memory of the model actors."""
        classifier.predict(texts[:300])
        found: dict[str, list[float]] = {work: [] for work in works}
        for _ in range(rounds):
            for work, do in works.items():
                found[work].append((few if work == "sequential" else rows) / timed(do))
        pool = ModelCache.get(name)
        assert isinstance(pool, PooledBackend)
        memory = private_and_mapped(pool.replicas(), path)
        ModelCache.clear()
        return {work: statistics.median(values) for work, values in found.items()}, memory

    results = {}
    for replicas in (1, 2, 4) if gpu_layers else (1, 2):
        if replicas > 1:  # as many threads and GPUs in all
            share = {"num_cpus": max(1, threads // replicas), "num_gpus": 1 / replicas if gpu_layers else 0}
            SKLLMConfig.set_gguf_resources(min_replicas=replicas, max_replicas=replicas, **share)  # type: ignore[arg-type]
        rates, memory = in_turn()
        results[str(replicas)] = {
            "rows_per_s": rates,
            "share": rates["predict"] / rates["bare engine"],
            "times_sequential": rates["predict"] / rates["sequential"],
            "memory": memory,
        }
    backend.close()
    peer.close()
    skllm_ray.shutdown()
    return results


def private_and_mapped(replicas: Sequence[Any], path: Path) -> list[dict[str, float]]:
    """Return MB that each process holds alone, and of the model's file: resident, and its share where others map it."""
    found = []
    for replica in replicas:
        process = psutil.Process(replica.pid)
        file = [part for part in process.memory_maps(grouped=False) if part.path == str(path)]
        found.append(
            {
                "private_mb": process.memory_full_info().uss / 1e6,
                "file_resident_mb": sum(part.rss for part in file) / 1e6,
                "file_proportional_mb": sum(getattr(part, "pss", 0) for part in file) / 1e6,
            }
        )
    return found


@click.command()
@click.option(
    "--sizes",
    default="demo,20M,250M-152k,270M-262k",
    show_default=True,
    help=f"Of demo, {', '.join(SHAPES)}; the real model comes first, if `make conformance` has downloaded it.",
)
@click.option(
    "--model",
    default=None,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A GGUF file to measure in place of --sizes.",
)
@click.option(
    "--data",
    default=None,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV file with columns text and category, such as BANKING77's; made-up texts without.",
)
@click.option("--labels", default="5,77,1000", show_default=True, help="Numbers of labels.")
@click.option("--full/--short", default=False, show_default=True, help="Measure llama.cpp's rates and free text, too.")
@click.option("--rows", default=0, help="Texts to classify; 0 chooses by size.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--gpu-layers", default=0, show_default=True, help="0: CPU, -1: all layers on the GPU.")
@click.option(
    "--widths", default="1,8,32", show_default=True, help="Rows asked together, and sequences written at once."
)
@click.option("--ray/--no-ray", default=False, show_default=True, help="With --full, measure predict through Ray.")
@click.option("--models", default=".benchmarks/models", show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=".benchmarks/gguf.json", show_default=True, type=click.Path(path_type=Path))
def main(
    sizes: str,
    model: Path | None,
    data: Path | None,
    labels: str,
    full: bool,
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
    counts, together = ([int(n) for n in numbers.split(",")] for numbers in (labels, widths))
    for size, path in _files(sizes, model, models.resolve()).items():
        n_rows = rows or (2048 if gpu_layers else {"demo": 1024, "20M": 256}.get(size, 64))
        one: dict[str, Any] = {}
        if not gpu_layers:
            one["by_labels"] = by_labels(path, data, counts, n_rows, rounds, threads)
            show_by_labels(console, size, one["by_labels"])
        if full or gpu_layers:
            one["scoring"] = scoring(path, n_rows, rounds, threads, gpu_layers, together)
            one["free_text"] = free_text(path, together, rounds, threads, gpu_layers)
            if ray:
                one["ray"] = through_ray(path, 2 * n_rows, rounds, threads, gpu_layers)
            show(console, size, one)
        results["models"][size] = one
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1))
    console.print(f"Written to {out}")


def _files(sizes: str, model: Path | None, models: Path) -> dict[str, Path]:
    """Return the models to measure; those of random weights are made where they are missing."""
    if model:
        return {model.name: model.resolve()}
    found = {REAL_MODEL.name: REAL_MODEL.resolve()} if REAL_MODEL.exists() else {}
    for size in sizes.split(","):
        found[size] = DEMO_FILE if size == "demo" else make_model(SHAPES[size], models / f"{size}.gguf")
    return found


def show(console: Console, size: str, one: dict[str, Any]) -> None:
    """Print one model's tables."""
    found = one["scoring"]
    table = Table(title=f"{size}: classification, {found['tokens_per_row']:.0f} tokens decoded per row")
    for column in ("", "rows/s", "ours is"):
        table.add_column(column, justify="left" if not column else "right")
    rates = found["rows_per_s"]
    table.add_row("scikit-llm's way: one by one", f"{rates['sequential']:.1f}", f"{found['times_sequential']:.2f} ×")
    times = f"{found['times_sequential_all_threads']:.2f} ×"
    table.add_row("the same with all threads", f"{rates['sequential, all threads']:.1f}", times)
    table.add_row("ours", f"{rates['ours']:.1f}", "")
    times = f"{rates['ours, exact probabilities'] / rates['sequential']:.2f} ×"
    table.add_row("ours, a row's probabilities as if alone", f"{rates['ours, exact probabilities']:.1f}", times)
    behind = f"behind the same {found['n_prefix']}"
    for line, name, share in (
        (f"llama.cpp's prompt rate, {behind} tokens", "limit, exact attention", "share_of_limit_exact_attention"),
        ("the same with flash attention", "limit", "share_of_limit"),
        ("llama.cpp's prompt rate, on an empty context", "limit, empty context", "share_of_limit_empty_context"),
    ):
        table.add_row(line, f"{rates[name]:.1f}", f"{found[share]:.0%}")
    for line in found["at_widths"]:
        sequential = rates["sequential"]
        times = f"{line['rows_per_s'] / sequential:.2f} × one by one"
        table.add_row(f"ours, {line['width']} rows at a time", f"{line['rows_per_s']:.1f}", times)
    if "ray" in one:
        for replicas, measured in one["ray"].items():
            rates, times = measured["rows_per_s"], f"{measured['times_sequential']:.2f} × one by one, in turn"
            line = f"predict through Ray, {replicas} replica(s), {measured['share']:.0%} of one bare engine in turn"
            table.add_row(line, f"{rates['predict']:.1f}", times)
    table.caption = found["memory"]
    console.print(table)
    table = Table(title=f"{size}: free text, tokens/s")
    for column in ("sequences at once", *one["free_text"][0]["tokens_per_s"], "ours × sequential", "of the limit"):
        table.add_column(column, justify="right")
    for line in one["free_text"]:
        shares = (f"{line['times_sequential']:.2f}", f"{line['share_of_limit']:.0%}")
        table.add_row(str(line["width"]), *(f"{rate:.0f}" for rate in line["tokens_per_s"].values()), *shares)
    console.print(table)
    if "ray" in one:
        table = Table(title=f"{size}: memory of model actors, MB")
        for column in ("", "an actor's own", "the file, resident", "the file, its share"):
            table.add_column(column, justify="right")
        for replicas, measured in one["ray"].items():
            for actor in measured["memory"]:
                table.add_row(f"{replicas} replica(s)", *(f"{value:.0f}" for value in actor.values()))
        console.print(table)


if __name__ == "__main__":
    main()
