"""Replies that were paid for, written down beside the output before their unit is finished.

A unit's journal is a folder of small files, each written whole and never changed, so that object stores serve too.
A line is either what was about to be asked (and what it may cost at most), or what came back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeAlias

import numpy as np

from skllm_ray.batch.storage import Folder
from skllm_ray.tasks.base import Embedding, Reply, Usage

SEGMENT_REPLIES: Final = 64
"""Replies in a segment, at most, where they arrive one by one."""
SEGMENT_S: Final = 2.0
"""The longest that a reply waits for its segment, in seconds."""
_TICK_S: Final = 0.25

Answer: TypeAlias = Reply | Embedding


class Journal:
    """What a unit's requests brought, by key.

    Parameters
    ----------
    folder : Folder
        The unit's own.
    resumes : bool
        Whether there may be segments of an attempt that was cut short.

    Attributes
    ----------
    answers : dict
        What this attempt was told, by key.
    resumed : dict
        What earlier attempts were told, by the key's hash.
    lost_usd : float
        What earlier attempts may have paid for requests whose answers nobody has.
    """

    def __init__(self, folder: Folder, *, resumes: bool) -> None:
        self._folder = folder
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._pending: dict[str, Answer] = {}
        self._oldest = 0.0
        self._state = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self._flushed_at = time.monotonic()
        self._written = resumes
        self._thread: threading.Thread | None = None
        self.answers: dict[str, Answer] = {}
        self.resumed: dict[str, Answer] = {}
        self.lost_usd = 0.0
        if resumes:
            self.resumed, self.lost_usd = load(folder)

    def intend(self, costs: Mapping[str, float]) -> None:
        """Write down what is about to be asked, and what each request may cost, in US dollars."""
        if any(costs.values()):
            self._write([{"i": [(digest(key), cost) for key, cost in costs.items()]}])

    def add(self, answers: Mapping[str, Answer], *, urgent: bool) -> None:
        """Take answers that are no errors.

        With `urgent` they arrive one by one: a segment is written for every 64 of them, and two seconds after the first
        at the latest, by a thread, since this is called from a client's event loop. Without, they come as a block that
        is written now, unless less than two seconds have passed since the last.
        """
        now = time.monotonic()
        with self._state:
            if not self._pending:
                self._oldest = now
            self._pending.update(answers)
            self.answers.update(answers)
            if urgent and self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="skllm-ray-journal", daemon=True)
                self._thread.start()
            if urgent and len(self._pending) >= SEGMENT_REPLIES:
                self._state.notify()
        if not urgent and now - self._flushed_at >= SEGMENT_S:
            self._flush()

    def check(self) -> None:
        """Raise the ``OSError`` of an answer that could not be written: nothing more may be paid for."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Write what is pending now.

        Raises
        ------
        OSError
            If an answer could not be written, now or before: nothing more may be paid for.
        """
        self._flush()
        self.check()

    def close(self, *, keep: bool) -> None:
        """End the journal; with `keep`, what is pending is written, else the whole journal is deleted."""
        with self._state:
            self._closed = True
            self._state.notify()
        if self._thread is not None:
            self._thread.join()
        if keep:
            self._flush()
        elif self._written:
            self._folder.delete("")

    def _follow(self) -> None:
        while True:
            with self._state:
                self._state.wait(_TICK_S)
                if self._closed:
                    return
                late = time.monotonic() - self._oldest >= SEGMENT_S
                due = len(self._pending) >= SEGMENT_REPLIES or (late and self._pending)
            if due:
                self._flush()

    def _flush(self) -> None:
        with self._state:
            pending, self._pending = self._pending, {}
            self._flushed_at = time.monotonic()
        if pending:
            self._write({"k": digest(key), **_dump(answer)} for key, answer in pending.items())

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
        with self._state:
            self._number += 1
            name = f"{self._run}-{self._number:06d}.jsonl"
            self._written = True
        try:
            self._folder.write(name, text.encode())
        except OSError as error:
            self._failure = error


def digest(key: str) -> str:
    """Return the form of a key that segments hold."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def load(folder: Folder) -> tuple[dict[str, Answer], float]:
    """Return a journal's answers by their keys' hashes, and the US dollars that requests without one may have cost."""
    answers: dict[str, Answer] = {}
    intended: dict[str, float] = {}
    names = sorted(folder.names())
    for name in names:
        if not name.endswith(".jsonl"):
            continue
        for line in folder.read(name).splitlines():
            told = _line(line)
            if "i" in told:
                for key, cost in told["i"]:
                    intended[key] = intended.get(key, 0.0) + cost
            elif "k" in told:
                answers[told["k"]] = _load(told)
    return answers, sum(cost for key, cost in intended.items() if key not in answers)


def paid(answers: Iterable[Answer]) -> float:
    """Return what answers cost together, in US dollars, as far as their prices are known."""
    return sum(answer.usage.cost_usd or 0.0 for answer in answers)


def _line(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # torn by a filesystem that renames before it writes
        return {}
    return found if isinstance(found, dict) else {}


def _dump(answer: Answer) -> dict[str, Any]:
    told: dict[str, Any] = {"u": list(asdict(answer.usage).values()), "m": answer.model, "a": answer.attempts}
    if isinstance(answer, Reply):
        return {**told, "t": answer.text, "l": answer.log_probs}
    vector = np.asarray(answer.vector, np.float32)
    return {**told, "v": base64.b64encode(vector.tobytes()).decode()}


def _load(told: Mapping[str, Any]) -> Answer:
    usage = Usage(*told["u"])
    if "v" in told:
        vector = np.frombuffer(base64.b64decode(told["v"]), np.float32)
        return Embedding(vector, usage, None, told["a"], told["m"])
    log_probs = None if told["l"] is None else tuple(told["l"])
    return Reply(told["t"], log_probs, usage, None, told["a"], told["m"])
