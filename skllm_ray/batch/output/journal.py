"""Replies that were paid for, written down beside the output before their unit is finished.

A unit's journal is a folder of small files, each written whole and never changed, so that object stores serve too.
Their names begin with that of the attempt which wrote them. A line is what was about to be asked, with the most that
it can cost; what came back; or what a request without an answer did cost. What an attempt was about to ask and tells
nothing more of counts as spent, so that the journals and the parts together tell at any moment what an output has cost
at most.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np

from skllm_ray.batch.output.part import is_amount
from skllm_ray.batch.output.progress import Progress
from skllm_ray.batch.storage import Folder
from skllm_ray.tasks.base import Embedding, Reply, RowError, Usage

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
    settled : collection of str, default=()
        Attempts that the unit's part knows: what they wrote is passed over.

    Attributes
    ----------
    answers : dict
        What this attempt was told, by key.
    resumed : dict
        What earlier attempts were told, by the key's hash.
    before : Progress
        What earlier attempts paid.
    attempts : list of str
        All attempts whose costs a part tells when it is made from this journal.
    tried : Counter of str
        How often each request was about to be asked, by the key's hash, as far as it was written down.
    """

    def __init__(self, folder: Folder, *, resumes: bool, settled: Collection[str] = ()) -> None:
        self._folder = folder
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._pending: list[tuple[Mapping[str, Answer], bool]] = []
        self._n_pending = 0
        self._oldest = 0.0
        self._state = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self._flushed_at = time.monotonic()
        self._written = resumes
        self._thread: threading.Thread | None = None
        self.answers: dict[str, Answer] = {}
        self.resumed: dict[str, Answer] = {}
        self.before = Progress()
        self.attempts = [*settled, self._run]
        self.tried: Counter[str] = Counter()
        if resumes:
            lines = [(run, told) for run, told in _lines(folder) if run not in settled]
            for told in (told for _, told in lines):
                self.tried.update(key for key, _ in told.get("i", ()))
                with suppress(ValueError):  # a vector that is none of ours
                    self.resumed |= _held(told)
            for run, bill in _paid(lines).items():
                self.before.add(bill)
                self.attempts.append(run)

    def intend(self, costs: Mapping[str, float]) -> None:
        """Write down what is about to be asked, and what each request may cost, in US dollars."""
        if any(costs.values()):
            self._write([intent_line({digest(key): cost for key, cost in costs.items()})])

    def settle(self, costs: Mapping[str, tuple[float, float]]) -> None:
        """Write down what requests without a good answer did cost, and may have cost, in US dollars."""
        if costs:
            self._write([end_line({digest(key): pair for key, pair in costs.items()})])

    def add(self, answers: Mapping[str, Answer], *, urgent: bool, free: bool = False) -> None:
        """Take answers that are no errors; nothing is paid for those that are `free`.

        With `urgent` they arrive one by one: a segment is written for every 64 of them, and two seconds after the first
        at the latest, by a thread, since this is called from a client's event loop. Without, they come as a block that
        is written now, unless less than two seconds have passed since the last.
        """
        now = time.monotonic()
        with self._state:
            if not self._pending:
                self._oldest = now
            self._pending.append((answers, free))
            self._n_pending += len(answers)
            self.answers.update(answers)
            if urgent and self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="skllm-ray-journal", daemon=True)
                self._thread.start()
            if urgent and self._n_pending >= SEGMENT_REPLIES:
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
                due = self._n_pending >= SEGMENT_REPLIES or (late and self._pending)
            if due:
                self._flush()

    def _flush(self) -> None:
        with self._state:
            pending, self._pending, self._n_pending = self._pending, [], 0
            self._flushed_at = time.monotonic()
        if pending:
            self._write(answer_line(digest(key), told, free) for some, free in pending for key, told in some.items())

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with self._state:
            self._number += 1
            number = self._number
            self._written = True
        try:
            write_segment(self._folder, self._run, number, lines)
        except OSError as error:
            self._failure = error


def write_segment(folder: Folder, run: str, number: int, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write some lines of an attempt. The same number again takes the place of what it wrote before."""
    text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
    folder.write(f"{run}-{number:06d}.jsonl", text.encode())


def intent_line(costs: Mapping[str, float]) -> dict[str, Any]:
    """Return the line that tells what is about to be asked, by the keys' hashes, and what that may cost."""
    return {"i": list(costs.items())}


def end_line(costs: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the line that tells what requests without an answer cost, and may have cost."""
    return {"s": [(key, *pair) for key, pair in costs.items()]}


def answer_line(key: str, answer: Answer, free: bool = False) -> dict[str, Any]:
    """Return the line that tells an answer, or a failure that asking again would not mend."""
    if answer.error is None:
        return {"k": key, **_dump(answer, free)}
    error = answer.error
    told = {"e": key, "x": [error.kind, error.message], "u": _told(answer.usage)}
    return {**told, "m": answer.model, "a": answer.attempts, "v": isinstance(answer, Embedding)}


def intents(folder: Folder, name: str) -> dict[str, float]:
    """Return what a file of a journal tells was about to be asked, by the keys' hashes, and what that may cost."""
    told = [_line(line) for line in folder.read_if_there(name).splitlines()]
    return {key: cost for one in told for key, cost in one.get("i", ())}


def digest(key: str) -> str:
    """Return the form of a key that segments hold."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def paid(folder: Folder) -> dict[str, Progress]:
    """Return what each attempt paid for of which a journal tells."""
    return _paid(_lines(folder))


def split(folder: Folder, into: Sequence[Folder]) -> None:
    """Give a journal to those of the units that take its unit's place, and delete it. May be done over again.

    All of them get its answers. The first alone gets its costs: they are counted for the output, not for a unit.
    """
    for name in sorted(folder.names()):
        text = folder.read(name)
        told = [_line(line) for line in text.splitlines()]
        free = "".join(json.dumps({**line, "f": 1}) + "\n" for line in told if "k" in line or "e" in line).encode()
        for place, target in enumerate(into):
            if place == 0 or free:
                target.write(name, free if place else text)
    folder.delete("")


def _lines(folder: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line with its attempt's name."""
    for name in sorted(folder.names()):
        if name.endswith(".jsonl"):
            for line in folder.read_if_there(name).splitlines():
                yield name.partition("-")[0], _line(line)


def _paid(lines: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Progress]:
    bills: dict[str, Progress] = defaultdict(Progress)
    asked: Counter[tuple[str, str]] = Counter()
    most: dict[tuple[str, str], float] = {}
    for run, told in lines:
        found = bills[run]
        if ("k" in told or "e" in told) and "f" not in told:
            is_known = not told["a"] or told["u"][3] is not None or ("e" in told and not any(told["u"][:3]))
            asked[run, told.get("k") or told["e"]] -= is_known  # else the most that it may have cost still counts
            usage = Usage(*told["u"]) if told["a"] else Usage(cost_usd=0.0)  # a reply cache had it
            found.add(
                Progress(
                    asked=int(told["a"] > 0),
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    cached_tokens=usage.cached_tokens,
                    cost_usd=usage.cost_usd or 0.0,
                    unpriced=int(usage.cost_usd is None and ("k" in told or usage != Usage())),
                )
            )
        for key, cost, unknown in told.get("s", ()):
            asked[run, key] -= 1
            found.cost_usd += cost
            found.unknown_usd += unknown
        for key, cost in told.get("i", ()):
            asked[run, key] += 1
            most[run, key] = cost
    for place, cost in most.items():
        bills[place[0]].unknown_usd += max(0, asked[place]) * cost
    return dict(bills)


def _line(line: bytes) -> dict[str, Any]:
    """Return what a line tells; nothing where it was torn by a filesystem, or is none of ours."""
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) and _is_sound(found) else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _is_sound(told: Mapping[str, Any]) -> bool:
    """Return whether a line's parts are sound; raise ``KeyError`` or ``TypeError`` where one is missing."""
    amounts = [cost for _, cost in told.get("i", ())]
    amounts += [part for _, *parts in told.get("s", ()) for part in parts]
    if "e" in told:
        amounts += [*told["u"][:3], told["a"], told["u"][3] or 0.0]
        return all(isinstance(text, str) for text in (told["e"], *told["x"], told["m"])) and all(
            map(is_amount, amounts)
        )
    if "k" in told:
        amounts += [*told["u"][:3], told["a"], told["u"][3] or 0.0, told.get("b") or 0.0]
        texts = [told["k"], told["m"], told["v"] if "v" in told else told["t"] or ""]
        listed = "v" in told or told["l"] is None or isinstance(told["l"], list)
        return listed and all(isinstance(text, str) for text in texts) and all(map(is_amount, amounts))
    return all(map(is_amount, amounts))


def packed(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain data; what it cost stands elsewhere."""
    return _dump(answer, free=False)


def unpacked(told: Mapping[str, Any]) -> Answer:
    """Return the answer in what `packed` made."""
    return _load(told)


def _held(told: Mapping[str, Any]) -> dict[str, Answer]:
    """Return what a line answers, by the key's hash; nothing where it answers nothing."""
    if "e" in told:
        kind, message = told["x"]
        kinds = Embedding if told["v"] else Reply
        failed = kinds(usage=Usage(*told["u"]), error=RowError(kind, message), attempts=told["a"], model=told["m"])
        return {told["e"]: failed}
    return {told["k"]: _load(told)} if "k" in told else {}


def _dump(answer: Answer, free: bool) -> dict[str, Any]:
    usage = replace(answer.usage, cost_usd=0.0) if free else answer.usage
    told: dict[str, Any] = {"u": _told(usage), "m": answer.model, "a": answer.attempts}
    if isinstance(answer, Reply):
        told |= {"t": answer.text, "l": answer.log_probs, "b": answer.label_mass}
        return told if answer.token_log_probs is None else {**told, "p": answer.token_log_probs}
    vector = np.asarray(answer.vector, np.float32)
    return {**told, "v": base64.b64encode(vector.tobytes()).decode()}


def _told(usage: Usage) -> list[Any]:
    return [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.cost_usd]


def _load(told: Mapping[str, Any]) -> Answer:
    usage = Usage(*told["u"])
    if "v" in told:
        vector = np.frombuffer(base64.b64decode(told["v"]), np.float32)
        return Embedding(vector, usage, None, told["a"], told["m"])
    log_probs = None if told["l"] is None else tuple(told["l"])
    mass = told.get("b")  # the first release wrote none
    tokens = tuple((end, log_prob) for end, log_prob in told["p"]) if told.get("p") else None
    return Reply(told["t"], log_probs, usage, None, told["a"], told["m"], mass, tokens)
