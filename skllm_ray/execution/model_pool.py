"""Model actors that outlive calls, as their callers see them: open a model, ask its actors, unload it.

The pool actor (``pool_actor.py``) replaces an actor that dies; the caller asks again. What was lost with its node is
asked as before. From the first other death on the caller asks alone, so that whatever kills the actor then is its own:
it halves the block at each death, down to the one row that kills its model, which costs itself alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from skllm_ray.errors import ClusterError, warn
from skllm_ray.execution import placement, ray_state
from skllm_ray.execution.arrivals import DIED
from skllm_ray.execution.last_words import quoted
from skllm_ray.execution.model_actor import ModelActor, ReplicaInfo
from skllm_ray.execution.open_backends import warn_of_changes
from skllm_ray.execution.pool_handle import (
    LOST,
    Owner,
    ask_pool,
    cause_of,
    existing_pool,
    look,
    owner_of,
    parent_job,
    pool_of,
)
from skllm_ray.execution.pool_state import Opened, Standing
from skllm_ray.execution.progress import download_bar, slow
from skllm_ray.execution.worker_feedback import Answers
from skllm_ray.llm.base import Backend, StatefulSpec
from skllm_ray.llm.cancellation import active_call
from skllm_ray.llm.open_models import Freed, ModelCache
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError

_POLL_S: Final = 0.05
_LONGEST_POLL_S: Final = 0.4
_SHOW_S: Final = 0.5
_TELL_S: Final = 3.0
_INFO_S: Final = 5.0
_GONE_S: Final = 10.0
_MOST_REOPENS: Final = 5
_DEATHS_OF_ONE_ROW: Final = 2  # alone, after one in company

_logger = logging.getLogger(__name__)
_lock = threading.Lock()

Crashed = Callable[[RowError, int], Any]
"""Makes a row's failure of an error and the number of attempts."""


def connect(spec: StatefulSpec, caller: str = "", n_rows: int = 0, priority: int = 0) -> PooledBackend:
    """Return the pool of `spec`, its model loaded at the first call of the job.

    Parameters
    ----------
    spec : StatefulSpec
        The model.
    caller : str, default=""
        Names who is about to ask about `n_rows` rows, so that as many replicas are asked for from the beginning.
    n_rows : int, default=0
        0 where that is not known.
    priority : int, default=0
        Among those who ask the same model, the higher is served first.

    Raises
    ------
    PlacementError
        If the cluster has no room for the actors.
    ModelLoadError
        If the model cannot be loaded.
    """
    owner, own = owner_of(spec)
    job = ray_state.job_key()
    held = ModelCache.get(spec.key)
    if isinstance(held, PooledBackend) and held.job == job and held.owner != owner and look(held.owner, spec.key):
        owner, own = held.owner, held.spec  # a model stays where it is
    if n_rows:
        pool_of(owner).tell.remote(spec.key, caller, n_rows, priority=priority)
    opened = look(owner, spec.key)
    if opened is None or not opened.n_replicas:
        opened = _open(owner, own)
    backend = PooledBackend(opened.spec, opened.n_replicas, job, owner, priority)
    with _lock:
        ModelCache.forget(spec.key)  # closing the old one would close the new one
        ModelCache.store(spec.key, backend, shared=owner != "job")
    if backend.spec != spec and not parent_job():
        warn_of_changes(spec)
    return backend


def is_nested_without_room(spec: StatefulSpec) -> bool:
    """Return whether a call from inside a task must load the model here, because its actors could never be placed.

    The task itself holds resources while it waits for the answer, so waiting for room could wait for ever.
    """
    if spec.placement.num_gpus or look(owner_of(spec)[0], spec.key):
        return False
    return placement.room(placement.share_of(spec.placement)) < spec.placement.min_replicas


def clear_shared() -> list[Freed]:
    """Unload the models that outlive jobs, whichever job loaded them."""
    return _unload("all", None)


class PooledBackend(Backend):
    """A backend whose model lives in a pool's actors. Picklable: Dataset tasks hold it too."""

    def __init__(self, spec: StatefulSpec, n_replicas: int, job: str, owner: Owner = "job", priority: int = 0) -> None:
        self.spec = spec
        self.n_replicas = n_replicas
        self.job = job
        self.owner = owner
        self.priority = priority

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request; a block from the driver is spread over all replicas at once."""
        return self._spread("complete", requests, lambda error, attempts: Reply(error=error, attempts=attempts))

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, spread likewise."""
        return self._spread("embed", texts, lambda error, attempts: Embedding(error=error, attempts=attempts))

    def close(self) -> list[Freed]:
        """Unload the model from all nodes."""
        if not ray_state.is_initialised() or ray_state.job_key() != self.job:
            return []
        return _unload(self.owner, self.spec.key)

    def replicas(self) -> list[ReplicaInfo]:
        """Return where the model's replicas live."""
        return list(ask_pool(self.owner, "replicas", self.spec.key))

    def standing(self, since: float = 0.0) -> Standing:
        """Return how many replicas there are now, with what became of them after `since`, in seconds since 1970."""
        found: Standing = ask_pool(self.owner, "standing", self.spec.key, since)
        return found

    def tell(self, caller: str, left: int, done: int, *, partial: bool) -> None:
        """Tell how many rows a caller has left, so that there are as many replicas as they need; 0 at its end."""
        with contextlib.suppress(ClusterError):  # a parent's pool that has ended
            pool_of(self.owner).tell.remote(self.spec.key, caller, left, done, partial, self.priority)

    def _spread(self, verb: str, items: Sequence[Any], crashed: Crashed) -> list[Any]:
        taken = self._take(len(items))
        calls = [(some, number, handle.call.remote(verb, some)) for some, number, handle in _shared(items, taken)]
        found: list[Any] = []
        answered = False
        try:
            for some, number, answer in calls:
                reply = self._answer(answer, number)
                answered |= not isinstance(reply, _Died)
                if not isinstance(reply, _Died):
                    found += reply
                elif reply.with_its_node:
                    found += self._spread(verb, some, crashed)
                else:
                    found += self._ask_alone(verb, some, crashed)
        finally:
            self._give_back(taken, answered)
        return found

    def _ask_alone(self, verb: str, items: Sequence[Any], crashed: Crashed) -> list[Any]:
        """Ask again, with the actor to itself; by halves if it dies, down to the one item that kills it."""
        for _ in range(_DEATHS_OF_ONE_ROW):
            found = self._ask_once_alone(verb, items)
            if found is not None:
                return found
            if len(items) > 1:
                return [one for half in _halves(items) for one in self._ask_alone(verb, half, crashed)]
        times = f"{_DEATHS_OF_ONE_ROW} times"
        words = ask_pool(self.owner, "words", self.spec.key)
        message = f"The process that held {self.spec.model} died {times} while it worked on this row alone."
        message += quoted(words)
        return [crashed(RowError("model_crashed", message), 1 + _DEATHS_OF_ONE_ROW)]

    def _ask_once_alone(self, verb: str, items: Sequence[Any]) -> list[Any] | None:
        """Return the answers; None if the actor died, and not with its node, of `items` and nothing else."""
        while True:
            taken = self._take(len(items), whole=True)
            ((number, handle, _),) = taken
            found: Any = None
            try:
                admission = self._answer(handle.admit.remote(), number)
                if isinstance(admission, _Died):  # of what ran before
                    continue
                call = handle.call_admitted.options(concurrency_group=ModelActor.ASIDE)
                found = self._answer(call.remote(admission, verb, items), number)
            finally:
                self._give_back(taken, isinstance(found, list))
            if isinstance(found, list):
                return found
            if isinstance(found, _Died) and not found.with_its_node:
                return None

    def _answer(self, answer: Any, number: int) -> Any:
        """Return what an actor answers; a `_Died` if it died, which the pool is told."""
        try:
            found = ray.get(answer)
        except RayTaskError as error:
            raise cause_of(error) from None
        except DIED:
            return _Died(bool(ask_pool(self.owner, "report_death", self.spec.key, number)))
        if isinstance(found, Answers):
            for message in found.warnings:
                warn(message)
        return found

    def _take(self, n_rows: int, *, whole: bool = False) -> Taken:
        """Return actors for a block, each with its rows; wait while all have enough to do, or are being replaced."""
        caller = uuid.uuid4().hex
        for _ in range(_MOST_REOPENS):
            pause_s = _POLL_S
            while (taken := ask_pool(self.owner, "take", self.spec.key, n_rows, caller, whole, self.priority)) == []:
                _stop_if_interrupted()
                time.sleep(pause_s)
                pause_s = min(_LONGEST_POLL_S, pause_s * 1.1)
            if taken:
                return list(taken)
            _open(self.owner, self.spec)  # the pool was lost, and its actors with it
        raise ClusterError(*LOST)

    def _give_back(self, taken: Taken, answered: bool) -> None:
        counts = [(number, rows) for number, _, rows in taken]
        with contextlib.suppress(ClusterError):  # a parent's pool that has ended
            pool_of(self.owner).give_back.remote(self.spec.key, counts, answered)


def _stop_if_interrupted() -> None:
    call = active_call()
    if call is not None and call.ended is not None and call.ended.kind == "cancelled":
        raise ClusterError("The call was interrupted.")


Taken = list[tuple[int, Any, int]]
"""Numbers of replicas, their actors, and how many rows each gets."""


@dataclass(frozen=True, slots=True)
class _Died:
    """What stands for the answer of an actor that died."""

    with_its_node: bool
    """Whether its node is lost, and what it was asked has done nothing."""


def _shared(items: Sequence[Any], taken: Taken) -> list[tuple[Sequence[Any], int, Any]]:
    """Return what each actor gets of the items, with its number."""
    found, start = [], 0
    for number, handle, rows in taken:
        found.append((items[start : start + rows], number, handle))
        start += rows
    return found


def _halves(items: Sequence[Any]) -> list[Sequence[Any]]:
    middle = -(-len(items) // 2)
    return [items[:middle], items[middle:]]


def _open(owner: Owner, spec: StatefulSpec) -> Opened:
    """Have the model loaded and wait for it; show how far its file is, where it has to come from elsewhere first."""
    number, began, told = None, time.monotonic(), False
    shown_at = began
    with slow(f"loading {spec.model} into its actors"), download_bar(spec.model) as show:
        while True:
            opened: Opened = ask_pool(owner, "open", spec, number, ray_state.is_fixed_size())
            if opened.n_replicas:
                return opened
            number = opened.number
            if time.monotonic() - shown_at >= _SHOW_S:
                _show_transfers(opened.arriving, show)
                shown_at = time.monotonic()
                if opened.waiting and not told and (told := shown_at - began > _TELL_S):
                    _logger.warning("skllm_ray: %s is %s", spec.model, opened.waiting)
            time.sleep(_POLL_S)


def _show_transfers(actors: Sequence[Any], show: Callable[[int, int], None]) -> None:
    asked = [actor.transfer.options(concurrency_group=ModelActor.ASIDE).remote() for actor in actors]
    with contextlib.suppress(GetTimeoutError, *DIED):
        found = [transfer for transfer in ray.get(asked, timeout=_INFO_S) if transfer is not None]
        if found:  # one for each node: the slowest decides
            slowest = min(found, key=lambda transfer: transfer.done)
            show(slowest.done, slowest.total)


def _unload(owner: Owner, key: str | None) -> list[Freed]:
    """Unload one model of a pool, or all; return what each process held that was still there.

    The actors end without closing their models, which a call may be at work with: the system frees what they held.
    """
    try:
        replicas = ray.get(existing_pool(owner).close.remote(key))
    except (ClusterError, *DIED):  # no pool, so no models
        return []
    asked = [handle.info.options(concurrency_group=ModelActor.ASIDE).remote() for _, handle, _ in replicas]
    freed = []
    for (model, _, known), answer in zip(replicas, asked, strict=True):
        info = known
        try:
            info = ray.get(answer, timeout=_INFO_S)
        except GetTimeoutError:  # too busy to say what it holds by now
            pass
        except DIED:
            continue
        freed.append(Freed(model, info.node, info.pid, info.memory_mb))
    for _, handle, _ in replicas:
        ray.kill(handle)
    for _, handle, _ in replicas:
        with contextlib.suppress(GetTimeoutError, *DIED):
            ray.get(handle.ping.remote(), timeout=_GONE_S)
    return freed
