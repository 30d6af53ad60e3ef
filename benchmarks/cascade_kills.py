"""A batch cascade over a million rows, killed three times: every request is counted, in every process.

    python -m benchmarks.cascade_kills --rows 1000000

The fast and the strong model are in the process that asks, and answer at once. Each writes eight bytes for each request
to a file before it answers, so that a killed process has told of all of its requests. Printed: how often each text was
asked of each model, what the parts hold, and what was promised and what is true.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.classification import CascadeClassifier, ZeroShotGPTClassifier
from skllm_ray.config import Price
from skllm_ray.tasks.base import Reply, Usage
from skllm_ray.testing import FakeBackend, FakeSpec

LABELS = ["blue", "green", "red"]


class Counting(FakeBackend):
    """Says of "i: label p other" the label with the probability p; the strong one says the other label."""

    def __init__(self, name: str) -> None:
        super().__init__(str)
        self.name = name
        self.log = os.open(f"{os.environ['CASCADE_LOG']}.{name}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def complete(self, requests):
        texts = [r.messages[-1]["content"].rpartition("\n```\n")[2].removesuffix("\n```") for r in requests]
        os.write(self.log, b"".join(int(text.partition(":")[0]).to_bytes(8, "big") for text in texts))
        return [self.reply_to(text) for text in texts]

    def complete_each(self, requests, tell):
        """Tell the strong one's answers one by one, as an API does."""
        if self.name == "fast" or tell is None:
            return self.complete(requests)
        replies = []
        for at, request in enumerate(requests):
            replies += self.complete([request])
            tell(at, replies[-1])
        return replies

    def reply_to(self, text):
        label, p, other = text.split()[1:]
        named = label if self.name == "fast" else other
        rest = float(np.log((1 - float(p)) / 2))
        told = tuple(float(np.log(float(p))) if one == named else rest for one in LABELS)
        return Reply(json.dumps({"label": named}), told, Usage(20, 3, cost_usd=0.0), model=self.name)


@dataclass(frozen=True)
class Spec(FakeSpec):
    """The fast or the strong model."""

    @property
    def model(self):
        return self.answer

    @property
    def capabilities(self):
        return replace(super().capabilities, gives_log_probs=True, streams=self.answer == "strong", price=Price(0.0))

    def open(self, resolve_secret):  # noqa: ARG002  the signature of a spec
        return Counting(self.answer)


class Model(ZeroShotGPTClassifier):
    def _resolve(self):
        return Spec(self.model, key=f"cascade-{self.model}")


def say(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def make_rows(n_rows: int, folder: Path, n_files: int = 8) -> None:
    """Write texts that all differ; of the unsure ones, the labels differ."""
    rng = np.random.default_rng(0)
    sure, label = rng.uniform(0.34, 1, n_rows), rng.integers(0, 3, n_rows)
    wrong = rng.random(n_rows) < np.clip(1.6 * (0.62 - sure), 0, 1)
    other = np.where(wrong, (label + 1) % 3, label)
    names = np.asarray(LABELS)
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(n_rows), n_files)):
        texts = [f"{i}: {names[label[i]]} {sure[i]:.9f} {names[other[i]]}" for i in part]
        pq.write_table(pa.table({"text": texts}), folder / f"{number}.parquet", row_group_size=20_000)


def work(source: Path, output: Path) -> None:
    """Run the job, in this process."""
    import skllm_ray
    from skllm_ray import batch

    skllm_ray.init(local_mode=True)
    fast, strong = (Model(model=name, on_error="coerce").fit(None, LABELS) for name in ("fast", "strong"))
    result = batch.run(CascadeClassifier(fast, strong), str(source), str(output), workers=1)
    say(json.dumps({"complete": result.complete, "asked": result.total.asked, "promise": result.promise}))


def run_with_kills(folder: Path, n_rows: int, kills: int) -> None:
    """Run the job, kill it when it has so many parts, and go on."""
    command = [sys.executable, "-m", "benchmarks.cascade_kills", "--work", str(folder)]
    environment = {**os.environ, "CASCADE_LOG": str(folder / "log")}
    n_parts, began = -(-n_rows // 8192), time.monotonic()
    for number in range(kills):
        process = subprocess.Popen(command, env=environment)
        until = n_parts * (number + 1) // (kills + 1)
        while len(list((folder / "out").glob("part-*"))) < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        say(f"killed with {len(list((folder / 'out').glob('part-*')))} of about {n_parts} parts")
    subprocess.run(command, env=environment, check=True)
    say(f"{time.monotonic() - began:,.0f} s in all")


def tell(folder: Path, n_rows: int) -> None:
    """Compare what was asked with what the parts hold."""
    table = pa.concat_tables([pq.read_table(part) for part in sorted((folder / "out").glob("part-*.parquet"))])
    stages = Counter(table["stage"].to_pylist())
    texts, labels = table["text"].to_pylist(), table["prediction"].to_pylist()
    differ = sum(label != text.split()[3] for text, label in zip(texts, labels, strict=True))
    say(f"rows {len(texts):,}, different texts {len(set(texts)):,}; {dict(stages)}")
    say(f"labels that differ from the strong model's: {differ:,} ({differ / n_rows:.3%})")
    for name, expected in (("fast", n_rows), ("strong", n_rows - stages["fast"])):
        asked = Counter(np.fromfile(folder / f"log.{name}", ">u8").tolist())
        total, twice = sum(asked.values()), sum(n > 1 for n in asked.values())
        say(f"{name}: {total:,} requests, {len(asked):,} texts; expected {expected:,}; asked again: {twice:,}")
        assert len(asked) == expected
    digest = hashlib.sha256("\n".join(map(str, labels)).encode()).hexdigest()[:16]
    say(f"labels {digest}; the seed decides them, whatever is killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--work", default=None)
    given = parser.parse_args()
    if given.work:
        work(Path(given.work) / "in", Path(given.work) / "out")
        return
    import tempfile

    folder = Path(given.folder or tempfile.mkdtemp())
    make_rows(given.rows, folder / "in")
    run_with_kills(folder, given.rows, given.kills)
    tell(folder, given.rows)


if __name__ == "__main__":
    main()
