"""A server that restarts again and again under one call: no row may be lost, as a restart is shorter than a row's time.

    python -m benchmarks.restarts --minutes 8

A server in a process of its own is killed every three minutes, stays away for one of them, and comes back on the same
port. One ``predict`` in local mode lasts for all of it. The server is slow, so that this costs little CPU. It counts
what it answers in a file, so that its deaths do not take the count along: a row whose answer was on its way when the
server died is asked again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer, prompt_of

CONCURRENCY = 4
LATENCY_S = 1.0
SPAWN = multiprocessing.get_context("spawn")


def text_of(row: int) -> str:
    return f"thing <{row}> is {'fine' if row % 3 else 'awful'}"


def label_of(row: int) -> str:
    return "good" if row % 3 else "bad"


def serve(port: int, answered: str, pipe: Any) -> None:
    """Serve until killed."""
    lock, file = threading.Lock(), Path(answered).open("a", buffering=1)  # noqa: SIM115  open until killed

    def answer(body: dict[str, Any]) -> str:
        row = int(prompt_of(body).rpartition("thing <")[2].partition(">")[0])
        with lock:
            file.write(f"{row}\n")
        return json.dumps({"label": label_of(row)})

    with ChatServer(answer, latency_s=LATENCY_S, port=port) as server:
        pipe.send(int(server.root.rpartition(":")[2]))
        threading.Event().wait()


class Restarting:
    """A server that is up for `up_s`, away for `down_s`, and so on."""

    def __init__(self, answered: Path, up_s: float, down_s: float) -> None:
        self._answered, self._up_s, self._down_s = str(answered), up_s, down_s
        self._over = threading.Event()
        self.restarts = 0
        self.port = 0
        self._process = self._start()
        threading.Thread(target=self._restart, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._process.kill()

    def _start(self) -> Any:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(self.port, self._answered, theirs), daemon=True)
        process.start()
        self.port = ours.recv()
        return process

    def _restart(self) -> None:
        while not self._over.wait(self._up_s):
            self._process.kill()
            self._process.join()
            log(f"the server is away for {self._down_s:g} s")
            if self._over.wait(self._down_s):
                return
            self._process = self._start()
            self.restarts += 1
            log("the server is back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--up-s", type=float, default=120)
    parser.add_argument("--down-s", type=float, default=60)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    skllm_ray.init(local_mode=True)
    with tempfile.TemporaryDirectory() as folder:
        answered = Path(folder) / "answered"
        server = Restarting(answered, given.up_s, given.down_s)
        SKLLMConfig.set_gpt_url(f"http://127.0.0.1:{server.port}/v1")
        SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=CONCURRENCY)
        up = given.up_s / (given.up_s + given.down_s)
        n_rows = int(60 * given.minutes * up * CONCURRENCY / LATENCY_S)
        clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, ["good", "bad"])
        began = time.monotonic()
        try:
            details = clf.predict_details([text_of(row) for row in range(n_rows)])
        finally:
            server.close()
        seconds = time.monotonic() - began
        asked = Counter(answered.read_text().split())
    labels, errors = list(details["prediction"]), Counter(details["error_kind"].dropna())
    told = {
        "rows": n_rows,
        "right": sum(label == label_of(row) for row, label in enumerate(labels)),
        "errors": dict(errors),
        "restarts": server.restarts,
        "seconds": round(seconds),
        "row_s": SKLLMConfig.get_timeouts().row_s,
        "most_attempts": int(details["attempts"].max()),
        "answered_twice": sum(asked.values()) - len(asked),
    }
    print(json.dumps(told, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    if told["right"] != n_rows:
        sys.exit("Some rows are lost.")


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
