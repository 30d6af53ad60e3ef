"""Replies that were paid for, in an SQLite file: the same request to the same model is asked once.

SQLite, from the standard library: one file, safe for several processes and, through its locks, for several nodes of a
shared file system that has POSIX locks. Its rollback journal is used, since a write-ahead log needs shared memory and
so one machine. A cache must never cost a row: where the file cannot be used, the call goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from skllm_ray.llm.base import Backend, ReplyCache
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Usage

_LOCKED_S = 30.0
_AT_ONCE = 500
_PRUNE_EVERY = 20
_logger = logging.getLogger(__name__)


class SQLiteReplyCache:
    """Replies by key.

    Parameters
    ----------
    path : str or path-like
        The file; made where it is missing.
    max_bytes : int, default=1_000_000_000
        When the replies take more, those that were used least recently are removed.

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
        self._writes = 0
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, size INTEGER NOT NULL, "
                "used REAL NOT NULL) WITHOUT ROWID"
            )
            db.execute("CREATE INDEX IF NOT EXISTS by_use ON replies (used)")

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """Return the replies that are there, by key."""
        found: dict[str, Reply] = {}
        with self._open() as db:
            for start in range(0, len(keys), _AT_ONCE):
                some = list(keys[start : start + _AT_ONCE])
                marks = ",".join("?" * len(some))
                rows = db.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some).fetchall()  # noqa: S608
                found.update((key, _load(text)) for key, text in rows)
                if rows:
                    used = [(time.time(), key) for key, _ in rows]
                    db.executemany("UPDATE replies SET used = ? WHERE key = ?", used)
        return found

    def put(self, replies: Mapping[str, Reply]) -> None:
        """Keep replies that are no errors."""
        good = [(key, _dump(reply)) for key, reply in replies.items() if reply.error is None]
        if not good:
            return
        with self._open() as db:
            rows = [(key, text, len(text) + len(key), time.time()) for key, text in good]
            db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", rows)
            self._writes += 1
            if self._writes % _PRUNE_EVERY == 1:
                self._prune(db)

    def __len__(self) -> int:
        with self._open() as db:
            return int(db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def _prune(self, db: sqlite3.Connection) -> None:
        total = int(db.execute("SELECT coalesce(sum(size), 0) FROM replies").fetchone()[0])
        if total <= self.max_bytes:
            return
        over, doomed = total - int(0.9 * self.max_bytes), []
        for key, size in db.execute("SELECT key, size FROM replies ORDER BY used"):
            doomed.append((key,))
            over -= size
            if over <= 0:
                break
        db.executemany("DELETE FROM replies WHERE key = ?", doomed)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: no connection outlives a fork, a thread or a lost file system."""
        with self._lock:
            db = sqlite3.connect(self.path, timeout=_LOCKED_S, isolation_level=None)
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                db.close()


class CachedBackend:
    """A backend that asks its own only for what the cache does not hold.

    Parameters
    ----------
    backend : Backend
        Who is asked.
    cache : ReplyCache
        Where replies are kept.
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
        keys = [self._key(request) for request in requests]
        held = self._look_up(list(dict.fromkeys(keys)))
        missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in held}
        places = sorted(missing.values())
        asked = dict(
            zip([keys[i] for i in places], self._ask([requests[i] for i in places], places, tell), strict=True)
        )
        self._keep(asked)
        replies = []
        for i, key in enumerate(keys):
            if missing.get(key) == i:
                replies.append(asked[key])
                continue
            replies.append(_free(held[key] if key in held else asked[key]))
            if tell is not None:
                tell(i, replies[i])
        return replies

    def _ask(
        self, requests: list[ChatRequest], places: Sequence[int], tell: Callable[[int, Reply], None] | None
    ) -> list[Reply]:
        if not requests:
            return []
        each = getattr(self._backend, "complete_each", None)
        if tell is None:
            return self._backend.complete(requests)
        if each is not None:
            found: list[Reply] = each(requests, lambda i, reply: tell(places[i], reply))
            return found
        replies = self._backend.complete(requests)
        for place, reply in zip(places, replies, strict=True):
            tell(place, reply)
        return replies

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text; vectors are not kept."""
        return self._backend.embed(texts)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()

    def _key(self, request: ChatRequest) -> str:
        whole = json.dumps([self._identity, asdict(request)], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def _look_up(self, keys: Sequence[str]) -> dict[str, Reply]:
        try:
            return self._cache.get(keys)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            _logger.warning("The reply cache cannot be read (%s); asking without it.", type(error).__name__)
            return {}

    def _keep(self, replies: Mapping[str, Reply]) -> None:
        try:
            self._cache.put(replies)
        except (sqlite3.Error, OSError, UnicodeError) as error:
            _logger.warning("The reply cache cannot be written (%s); going on without it.", type(error).__name__)


def with_cache(backend: Backend, spec: Any) -> Backend:
    """Return `backend`, under a cache where its spec names one."""
    path = getattr(spec, "reply_cache", None)
    if path is None:
        return backend
    try:
        return CachedBackend(backend, SQLiteReplyCache(path), spec.identity)
    except (sqlite3.Error, OSError) as error:
        _logger.warning("The reply cache %s cannot be opened (%s); asking without it.", path, type(error).__name__)
        return backend


def _free(reply: Reply) -> Reply:
    """Return a reply that was paid for before, or that failed for another row."""
    if reply.error is not None:
        return reply
    usage = replace(reply.usage, cost_usd=0.0)
    return replace(reply, attempts=0, usage=usage)


def _dump(reply: Reply) -> str:
    return json.dumps(
        {"text": reply.text, "log_probs": reply.log_probs, "usage": asdict(reply.usage), "model": reply.model}
    )


def _load(text: str) -> Reply:
    told = json.loads(text)
    log_probs = None if told["log_probs"] is None else tuple(told["log_probs"])
    return Reply(told["text"], log_probs, Usage(**told["usage"]), model=told["model"], attempts=0)
