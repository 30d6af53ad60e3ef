"""Every architecture that could be built, with random 32-bit weights, against one full pass per label.

``python -m benchmarks.architectures`` prints a table. The work is done in other processes, because llama.cpp aborts
the process where it stumbles. llama.cpp's source archive holds tokenizers of many models; with them vocabularies
are as large as real ones are::

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    python -m benchmarks.architectures --vocabularies llama_cpp_python-0.3.36/vendor/llama.cpp/models

Without them, or without the one that an architecture names, the demo model's tokenizer serves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.architecture_table import ARCHITECTURES, RECURRENT, Architecture
from benchmarks.brute_force import BruteForce
from benchmarks.random_weights import write_model
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.tasks import ChatRequest, Choices

VOCABULARIES = "SKLLM_RAY_VOCABULARIES"
"""The environment variable that names the folder of tokenizers."""
TOLERANCE = 1e-3  # of a probability
LABELS = (("positive", "negative", "neutral"), ("a", "ab", "abc d"))
TEXTS = (
    "I love it.",
    "Broke after two days.",
    'a "quote" \\ {x} 👩‍👩‍👧 ça',
    "word " * 150,
    "It arrived on a Tuesday. " * 5,
)


@dataclass(frozen=True)
class Result:
    """What was found of an architecture."""

    name: str
    vocabulary: str
    n_vocab: int
    alone: float
    """The largest difference of a label's probability, where rows are asked one by one."""
    together: float
    """The same, where all are asked at once."""
    logs: float
    """The largest difference of a label's log-probability, alone or together: unlikely labels count as well."""
    spread: float
    """The standard deviation of a log-probability over the texts: near 0, nothing would be tried."""
    best: float
    """The share of rows whose label, asked for alone, is the likeliest of the reference."""

    @property
    def holds(self) -> bool:
        """Whether the scores are those of the reference."""
        return self.alone < TOLERANCE > self.together and self.logs < 0.02 < self.spread and self.best == 1


def vocabulary_file(architecture: Architecture, folder: Path | None) -> Path:
    """Return the tokenizer of an architecture, or the demo model where it is not in `folder`."""
    file = folder / f"ggml-vocab-{architecture.vocabulary}.gguf" if folder else DEMO_FILE
    return file if file.exists() else DEMO_FILE


def check(architecture: Architecture, folder: Path | None) -> Result:
    """Compare scores and labels with the reference."""
    vocabulary = vocabulary_file(architecture, folder)
    requests = [ChatRequest(({"role": "user", "content": text},), Choices(one)) for text in TEXTS for one in LABELS]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.gguf"
        write_model(path, architecture.name, architecture.metadata, vocabulary, without=architecture.without)
        with BruteForce(path) as brute:
            expected = np.stack([brute.log_probs(request) for request in requests])
            n_vocab = brute.n_vocab
        backend = GGUFBackend(path, f"gguf::{architecture.name}", 0, 1)
        try:
            exact = [_with(request, exact=True) for request in requests]
            together = np.stack([reply.log_probs for reply in backend.complete(exact)])
            alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
            best = [
                json.loads(reply.text or "{}") for reply in backend.complete([_with(r, best_only=True) for r in exact])
            ]
        finally:
            backend.close()
    likeliest = [LABELS[i % len(LABELS)][int(row.argmax())] for i, row in enumerate(expected)]
    reference = np.exp(expected)
    return Result(
        architecture.name,
        "demo" if vocabulary == DEMO_FILE else architecture.vocabulary,
        n_vocab,
        float(np.abs(np.exp(alone) - reference).max()),
        float(np.abs(np.exp(together) - reference).max()),
        float(max(np.abs(alone - expected).max(), np.abs(together - expected).max())),
        float(max(expected[start :: len(LABELS)].std(axis=0).max() for start in range(len(LABELS)))),
        float(np.mean([found.get("label") == label for found, label in zip(best, likeliest, strict=True)])),
    )


def check_elsewhere(names: Sequence[str], folder: Path | None) -> Iterator[tuple[str, Result | str]]:
    """Check architectures in other processes; yield each one's result, or what was said last where a process died.

    Those of one tokenizer share a process: it reads the tokenizer once.
    """
    command = [sys.executable, "-m", "benchmarks.architectures", "--these"]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1", VOCABULARIES: str(folder or "")}
    waiting = sorted(names, key=lambda name: (str(vocabulary_file(ARCHITECTURES[name], folder)), names.index(name)))
    for _, group in itertools.groupby(waiting, lambda name: vocabulary_file(ARCHITECTURES[name], folder)):
        left = list(group)
        while left:
            done = subprocess.run([*command, *left], capture_output=True, text=True, env=environment, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            for line in lines:
                yield left.pop(0), Result(**json.loads(line))
            if left:
                said = [line for line in done.stderr.splitlines() if line.strip()]
                yield left.pop(0), said[-1][-200:] if said else f"ended with {done.returncode}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--vocabularies", type=Path, help=f"llama.cpp's folder models; else ${VOCABULARIES}")
    parser.add_argument("--these", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    folder = given.vocabularies or (Path(os.environ[VOCABULARIES]) if os.environ.get(VOCABULARIES) else None)
    if given.these:
        for name in given.these:
            sys.stdout.write(json.dumps(asdict(check(ARCHITECTURES[name], folder))) + "\n")
            sys.stdout.flush()
        return
    say = partial(Console(soft_wrap=True).print, markup=False, highlight=False)
    say("| architecture | recurrent layers | tokenizer | tokens | alone | together | logs | spread | best label |")
    say("|---|---|---|---|---|---|---|---|---|")
    names = [name for name in ARCHITECTURES if re.search(given.only, name)]
    hold = []
    for name, found in check_elsewhere(names, folder):
        say(_line(name, found))
        if isinstance(found, Result) and found.holds:
            hold.append(name)
    n_recurrent = sum(name in RECURRENT for name in hold)
    say(f"\n{len(hold)} of {len(names)} hold, {n_recurrent} with recurrent layers among them.")


def _line(name: str, found: Result | str) -> str:
    kind = "yes" if name in RECURRENT else ""
    if isinstance(found, str):
        return f"| {name} | {kind} | failed: {found} |"
    return (
        f"| {name} | {kind} | {found.vocabulary} | {found.n_vocab:,} | {found.alone:.0e} | {found.together:.0e} "
        f"| {found.logs:.0e} | {found.spread:.1f} | {found.best:.0%} |{'' if found.holds else ' **differs**'}"
    )


def _with(request: ChatRequest, **values: bool) -> ChatRequest:
    if request.choices is None:
        raise TypeError("The request has no labels.")
    return replace(request, choices=replace(request.choices, **values))


if __name__ == "__main__":
    main()
