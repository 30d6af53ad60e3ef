"""Answers that were paid for, in an SQLite file: the same request to the same model is asked once.

SQLite, from the standard library: one file, safe for several processes and, through its locks, for several nodes of a
shared file system that has POSIX locks. Its rollback journal is used, since a write-ahead log needs shared memory and
so one machine. A cache must never cost a row: where the file cannot be used, the call goes on without it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Usage

_LOCKED_S: Final = 30.0
_AT_ONCE: Final = 500
_ASKED: Final = tuple(field.name for field in fields(ChatRequest) if field.name != "answer_bound")
"""What an answer depends on: the bound changes none that is kept."""
_SEGMENT: Final = 64
_SEGMENT_S: Final = 2.0
_SPARE_PAGES: Final = 8  # what a transaction may need besides its answers
_logger = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A", Reply, Embedding)


class SQLiteReplyCache:
    """Answers by key.

    Parameters
    ----------
    path : str or path-like
        The file; made where it is missing.
    max_bytes : int, default=1_000_000_000
        The largest size of the file; where it is reached, the oldest answers are removed.

    Examples
    --------
    >>> import tempfile
    >>> cache = SQLiteReplyCache(tempfile.mkdtemp() + "/replies.sqlite")
    >>> cache.put({"a": Reply("yes")})
    >>> cache.get(["a", "b"])["a"].text
    'yes'
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 1_000_000_000) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open("IMMEDIATE") as db:
            # The ids ascend with time, so that the oldest answers lie together and their removal frees whole pages.
            db.execute(
                "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, "
                "answer TEXT NOT NULL)"
            )
        if self.path.stat().st_size > max_bytes:
            self._shrink()

    def get(self, keys: Sequence[str]) -> dict[str, Reply | Embedding]:
        """Return the answers that are there, by key; what cannot be read counts as missing."""
        found: dict[str, Reply | Embedding] = {}
        with self._open("DEFERRED") as db:
            for start in range(0, len(keys), _AT_ONCE):
                some = list(keys[start : start + _AT_ONCE])
                marks = ",".join("?" * len(some))
                query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"  # noqa: S608
                for key, text in db.execute(query, some):
                    answer = _load(text)
                    if answer is not None:
                        found[key] = answer
        return found

    def put(self, answers: Mapping[str, Reply | Embedding]) -> None:
        """Keep answers that are no errors."""
        rows = [(key, _dump(answer)) for key, answer in answers.items() if answer.error is None]
        part: list[tuple[str, str]] = []
        size = 0
        for key, text in rows:
            n_bytes = 2 * len(key) + len(text)  # ASCII, both
            if n_bytes > self.max_bytes // 4:
                continue
            if size + n_bytes > self.max_bytes // 4:
                self._write(part, size)
                part, size = [], 0
            part.append((key, text))
            size += n_bytes
        if part:
            self._write(part, size)

    def drop(self, keys: Sequence[str]) -> None:
        """Forget answers."""
        with self._open("IMMEDIATE") as db:
            db.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])

    def __len__(self) -> int:
        with self._open("DEFERRED") as db:
            return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _write(self, rows: Sequence[tuple[str, str]], n_bytes: int) -> None:
        for room in (2 * n_bytes, self.max_bytes // 2):
            try:
                with self._open("IMMEDIATE") as db:
                    self._make_room(db, room)
                    db.executemany("INSERT OR REPLACE INTO answers (key, answer) VALUES (?, ?)", rows)
                return
            except sqlite3.OperationalError as error:  # fuller than it was estimated
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise

    def _make_room(self, db: sqlite3.Connection, n_bytes: int) -> None:
        """Remove the oldest answers until `n_bytes` fit in, and a tenth more so that it is not done every time."""
        n_bytes += min(_SPARE_PAGES * _pragma(db, "page_size"), self.max_bytes // 8)
        if self._used(db) + n_bytes <= self.max_bytes:
            return
        while self._used(db) + n_bytes > 0.9 * self.max_bytes:
            oldest, newest = db.execute("SELECT min(id), max(id) FROM answers").fetchone()
            if oldest is None:
                return
            db.execute("DELETE FROM answers WHERE id <= ?", (oldest + (newest - oldest) // 16,))

    def _used(self, db: sqlite3.Connection) -> int:
        return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")

    def _shrink(self) -> None:
        """Bring a file from before, which may have had a higher bound, below this one."""
        with self._open("IMMEDIATE") as db:
            self._make_room(db, 0)
        with self._open(None) as db:
            db.execute("VACUUM")

    @contextmanager
    def _open(self, transaction: str | None) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: no connection outlives a fork, a thread or a lost file system."""
        with self._lock:
            db = sqlite3.connect(self.path, timeout=_LOCKED_S, isolation_level=None)
            try:
                if transaction is not None:
                    db.execute(f"PRAGMA max_page_count = {self.max_bytes // _pragma(db, 'page_size')}")
                    db.execute(f"BEGIN {transaction}")
                yield db
                if db.in_transaction:
                    db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                db.close()


class CachedBackend(Backend):
    """A backend that asks its own only for what the cache does not hold.

    Answers are written in small segments while others are still waited for: a call that is interrupted, or a worker
    that is killed, loses little of what was paid for.

    Parameters
    ----------
    backend : Backend
        Who is asked.
    cache : ReplyCache
        Where answers are kept.
    identity : sequence of str
        What an answer depends on besides the request.
    """

    def __init__(self, backend: Backend, cache: ReplyCache, identity: Sequence[str]) -> None:
        self._backend = backend
        self._cache = cache
        self._identity = list(identity)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request; those from the cache have ``attempts=0`` and cost nothing."""
        return self.complete_each(requests, None)

    def complete_each(self, requests: Sequence[ChatRequest], tell: Callable[[int, Reply], None] | None) -> list[Reply]:
        """Do what `complete` does, and call `tell` with each reply and its position when it is there."""
        return self._obtain([self._key(request) for request in requests], requests, self._ask, Reply, tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, likewise."""
        return self._obtain([self._key(text) for text in texts], texts, self._ask_vectors, Embedding, None)

    def recall(self, asked: Sequence[ChatRequest | str]) -> list[bool]:
        """Return for each request, or text to embed, whether the cache holds its answer."""
        keys = [self._key(one) for one in asked]
        held: Mapping[str, Reply | Embedding] = {}
        with _despite_failures("read"):
            held = self._cache.get(keys)
        return [key in held for key in keys]

    def keep(self, asked: Sequence[ChatRequest | str], answers: Sequence[Reply | Embedding]) -> None:
        """Keep answers that came by another way."""
        self._keep({self._key(one): answer for one, answer in zip(asked, answers, strict=True)})

    def forget(self, requests: Sequence[ChatRequest]) -> None:
        """Keep no reply to `requests`, since the task cannot use it."""
        with _despite_failures("written"):
            self._cache.drop([self._key(request) for request in requests])

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()

    def _obtain(
        self,
        keys: Sequence[str],
        questions: Sequence[Q],
        ask: Callable[[list[Q], Callable[[int, A], None]], list[A]],
        kind: type[A],
        tell: Callable[[int, A], None] | None,
    ) -> list[A]:
        held = self._look_up(list(dict.fromkeys(keys)), kind)
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in held:
                first.setdefault(key, i)
        places = list(first.values())
        asked: dict[str, A] = {}
        if places:
            with _Segments(self._keep) as segments:

                def take(j: int, answer: A) -> None:
                    segments.add(keys[places[j]], answer)
                    if tell is not None:
                        tell(places[j], answer)

                asked = dict(zip(first, ask([questions[i] for i in places], take), strict=True))
        answers = []
        for i, key in enumerate(keys):
            if first.get(key) == i:
                answers.append(asked[key])
                continue
            answers.append(_free(held[key] if key in held else asked[key]))
            if tell is not None:
                tell(i, answers[i])
        return answers

    def _ask(self, requests: list[ChatRequest], take: Callable[[int, Reply], None]) -> list[Reply]:
        return self._backend.complete_each(requests, take)

    def _ask_vectors(self, texts: list[str], take: Callable[[int, Embedding], None]) -> list[Embedding]:
        found = self._backend.embed(texts)
        for i, embedding in enumerate(found):
            take(i, embedding)
        return found

    def _key(self, question: ChatRequest | str) -> str:
        asked: Any = question
        if isinstance(question, ChatRequest):  # `asdict` would copy each message
            asked = {name: getattr(question, name) for name in _ASKED}
        whole = json.dumps([self._identity, asked], default=asdict, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def _look_up(self, keys: Sequence[str], kind: type[A]) -> dict[str, A]:
        found: Mapping[str, Reply | Embedding] = {}
        with _despite_failures("read"):
            found = self._cache.get(keys)
        return {key: answer for key, answer in found.items() if isinstance(answer, kind)}

    def _keep(self, answers: Mapping[str, Reply | Embedding]) -> None:
        with _despite_failures("written"):
            self._cache.put(answers)


class _Segments:
    """Writes answers from a thread of its own, many at a time: whoever receives them must not wait for a disk."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        self._write = write
        self._waiting: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="skllm-ray-reply-cache", daemon=True)

    def __enter__(self) -> _Segments:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def add(self, key: str, answer: Reply | Embedding) -> None:
        """Have an answer written within two seconds, if it is no error."""
        if answer.error is None:
            self._waiting.put((key, answer))

    def _run(self) -> None:
        more = True
        while more:
            segment, more = self._next()
            if segment:
                self._write(segment)

    def _next(self) -> tuple[dict[str, Any], bool]:
        """Return the next segment, and whether there may be another."""
        item = self._waiting.get()
        segment: dict[str, Any] = {}
        deadline = time.monotonic() + _SEGMENT_S
        while item is not None:
            segment[item[0]] = item[1]
            if len(segment) >= _SEGMENT and self._waiting.empty():
                return segment, True
            try:
                item = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return segment, True
        return segment, False


def with_cache(backend: Backend, spec: BackendSpec) -> Backend:
    """Return `backend`, under a cache where its spec names one."""
    cache = spec.capabilities.cache
    if cache is not None:
        with _despite_failures("opened"):
            backend = CachedBackend(backend, SQLiteReplyCache(cache.path, cache.max_bytes), spec.identity)
    return backend


@contextmanager
def _despite_failures(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeError) as error:
        _logger.warning("The reply cache cannot be %s (%s); going on without it.", what, type(error).__name__)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _free(answer: A) -> A:
    """Return an answer that was paid for before, or that failed for another row."""
    if answer.error is not None:
        return answer
    return replace(answer, attempts=0, usage=replace(answer.usage, cost_usd=0.0))


def _dump(answer: Reply | Embedding) -> str:
    held: dict[str, Any] = {"usage": asdict(answer.usage), "model": answer.model}
    if isinstance(answer, Embedding):
        vector = np.asarray(answer.vector, dtype="<f4")
        held["vector"] = base64.b64encode(vector.tobytes()).decode()
    else:
        held |= {"text": answer.text, "log_probs": answer.log_probs, "label_mass": answer.label_mass}
        held |= {} if answer.token_log_probs is None else {"tokens": answer.token_log_probs}
    return json.dumps(held)


def _load(text: str) -> Reply | Embedding | None:
    """Return an answer as it was kept; None where it is damaged."""
    try:
        held: Any = json.loads(text)
        usage, model = _usage(**held["usage"]), str(held["model"])
        if "vector" in held:
            vector = np.frombuffer(base64.b64decode(held["vector"], validate=True), dtype="<f4").astype(np.float32)
            return Embedding(vector, usage, attempts=0, model=model) if vector.size else None
        log_probs = None if held["log_probs"] is None else tuple(map(float, held["log_probs"]))
        mass = None if held.get("label_mass") is None else float(held["label_mass"])  # the first release kept none
        tokens = tuple((int(end), float(one)) for end, one in held["tokens"]) if held.get("tokens") else None
        whole = Reply(held["text"], log_probs, usage, None, 0, model, mass, tokens)
        return whole if isinstance(held["text"], str) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _usage(cost_usd: float | None, **tokens: int) -> Usage:
    return Usage(**{name: int(n) for name, n in tokens.items()}, cost_usd=None if cost_usd is None else float(cost_usd))


class ReplyCache(Protocol):
    """Keeps answers, so that the same request to the same model is paid for once."""

    def get(self, keys: Sequence[str]) -> Mapping[str, Reply | Embedding]:
        """Return the answers that are there, by key."""
        ...

    def put(self, answers: Mapping[str, Reply | Embedding]) -> None:
        """Keep answers that are no errors."""
        ...

    def drop(self, keys: Sequence[str]) -> None:
        """Forget answers."""
        ...
