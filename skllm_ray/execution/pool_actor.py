"""The pool actor: starts model actors, replaces those that die, and says which one is to be asked.

Its methods return at once, and it loads models in threads of its own. Whoever waits asks again: so a caller may be
cancelled or killed at any time and leaves nothing behind. (Ray cancels what a cancelled task has started, even the
calls that an actor makes on its behalf, and a pool whose call to a model actor is cancelled has crashed.)
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import ray

from skllm_ray.config import GGUFResources
from skllm_ray.errors import ClusterError
from skllm_ray.execution.arrivals import DIED, Arrival, Bringing, Failure, end_named, kill, start
from skllm_ray.execution.assignment import assign
from skllm_ray.execution.last_words import Place, why_given_up, why_not_loaded, words_of
from skllm_ray.execution.model_actor import IdleExit, ReplicaInfo
from skllm_ray.execution.nodes import is_lost
from skllm_ray.execution.placement import (
    Share,
    cpu_share_of,
    fits_a_node,
    no_room,
    nodes_to_avoid,
    patience_s,
    replicas_to_add,
    share_of,
)
from skllm_ray.execution.pool_scaling import Balance, Cluster
from skllm_ray.execution.pool_state import Callers, Model, Opened, Replica, Standing, opened, standing
from skllm_ray.execution.ray_state import shared_name
from skllm_ray.llm.base import StatefulSpec
from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.tasks.base import ChatRequest, Choices, Embedding, Reply, RowError, Usage

_logger = logging.getLogger(__name__)
_TOLD: Final = (
    GGUFSpec, GGUFOptions, GGUFResources, ReplicaInfo, Opened, Standing, ChatRequest, Choices, Reply, Embedding,
    RowError, Usage,
)  # fmt: skip
SHARED: Final = shared_name("pool-shared", *_TOLD)
"""The pool that outlives jobs."""
_NAME: Final = shared_name("replica", *_TOLD) + "-"
_IDLE_S: Final = 24 * 3600.0
_BALANCE_S: Final = 0.5
_MOST_DEATHS: Final = 40  # in a row, per replica; the search for one bad row among 256 costs 11
_DOUBTS: Final = 3  # deaths in a row, from which on a new replica must answer a trivial request first


class PoolActor:
    """Creates model actors, so that they live as long as the job, whichever process asked first.

    Parameters
    ----------
    shared : bool, default=False
        Whether the models outlive jobs and all jobs of the cluster share them.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._idle = IdleExit(_IDLE_S if shared else None)
        self._models: dict[str, Model] = {}
        self._callers: dict[str, Callers] = {}
        self._cleared: set[str] = set()
        self._state = threading.RLock()
        self._loaders = ThreadPoolExecutor(64, "load")
        self._numbers = itertools.count(time.time_ns())  # none that a pool which died in this one's place gave out
        self._balance = Balance(Cluster(), self._ask, self._ask_beside)
        self._balancing: threading.Thread | None = None
        if shared:
            end_named(_NAME)

    def open(self, spec: StatefulSpec, number: int | None = None, fixed_size: bool = False) -> Opened:
        """Begin to load the model of `spec` if nobody has, and say how far it is.

        Who waits asks again with the `number` that was returned, and gets the error if this loading has failed.
        `fixed_size` says that no node can come: then what no node is large enough for fails at once.
        """
        with self._state:
            self._idle.touch()
            model = self._models.get(spec.key)
            if model is None and number is not None and spec.key in self._cleared:
                raise _unloaded(spec.key)
            if model is not None and number == model.number and model.failure is not None:
                raise model.failure
            if model is None or model.failure is not None:
                callers = self._callers.setdefault(spec.key, Callers())
                model = Model(spec, share_of(spec.placement), next(self._numbers), callers)
                self._models[spec.key] = model
                self._cleared.discard(spec.key)
                self._load_first(model, fixed_size)
                self._keep_balance()
            return opened(model)

    def look(self, key: str) -> Opened | None:
        """Return how far a model is that somebody opened; None if it is not there and not on its way."""
        with self._state:
            self._idle.touch()
            model = self._models.get(key)
            if model is None or model.failure is not None or not (model.replicas or model.arrivals):
                return None
            model.used_at = time.monotonic()
            return opened(model)

    def take(
        self, key: str, rows: int, caller: str = "", whole: bool = False, priority: int = 0
    ) -> list[tuple[int, Any, int]] | None:
        """Return which replicas get a block of rows now, and how many rows each; they are counted as in flight.

        An empty list asks to wait, because all replicas have enough to do, or one that died is being replaced. None:
        this pool has never heard of the model, and so is a new one in place of one that died. Callers of a higher
        `priority` that wait are served first.
        """
        with self._state:
            self._idle.touch()
            model = self._models.get(key)
            if model is None:
                if key in self._cleared:
                    raise _unloaded(key)
                return None
            if model.failure is not None:
                raise model.failure
            now, callers = time.monotonic(), model.callers
            loads = {number: replica.load_at(now) for number, replica in model.replicas.items()}
            comes_later = callers.is_outranked(caller, priority, now)
            if comes_later or not (chosen := assign(loads, rows, callers.rows_left(now), whole=whole)):
                callers.wait(caller, priority, now)
                return []
            callers.waiting.pop(caller, None)
            callers.asked += rows
            for number, some in chosen:
                model.replicas[number].begin(some, now)
            return [(number, model.replicas[number].handle, some) for number, some in chosen]

    def give_back(self, key: str, taken: Sequence[tuple[int, int]], answered: bool) -> None:
        """Count calls as finished, by replica and rows; `answered` tells that the model works."""
        with self._state:
            model = self._models.get(key)
            if model is None:
                return
            model.deaths = 0 if answered else model.deaths
            if answered and not model.has_answered:
                model.has_answered = True
                model.note("answered")
            for number, rows in taken:
                if number in model.replicas:
                    model.replicas[number].end(rows, time.monotonic(), answered=answered)

    def tell(self, key: str, caller: str, left: int, done: int = 0, partial: bool = False, priority: int = 0) -> None:
        """Take note of how many rows a caller has left for a model, loaded or not; 0 where it has ended."""
        with self._state:
            callers = self._callers.setdefault(key, Callers())
            callers.tell(caller, left, done, time.monotonic(), partial=partial, priority=priority)

    def standing(self, key: str, since: float = 0.0) -> Standing:
        """Return how a model stands, with what happened after `since`, in seconds since 1970-01-01 UTC."""
        with self._state:
            model = self._models.get(key)
            return Standing() if model is None else standing(model, since)

    def report_death(self, key: str, number: int) -> bool:
        """Start a new replica for one that died. Several callers may report the same death.

        Returns whether its node is lost, so that nothing that it was asked is to blame.
        """
        with self._state:
            model = self._models.get(key)
            dead = model.replicas.get(number) if model is not None else None
        lost = dead is not None and bool(dead.place.node) and is_lost(dead.place.node)
        with self._state:
            dead = model.replicas.pop(number, None) if model is not None else None
            if model is None or dead is None:
                return model is not None and number in model.lost
            ray.kill(dead.handle)
            model.note("lost" if lost else "died")
            if lost:
                model.lost.add(number)
                self._balance.replace(model, time.monotonic())
                return True
            if not dead.beside:
                self._replace_dead(model, dead.place)
            return False

    def words(self, key: str) -> str:
        """Return what the process of the model that died last wrote at its end; empty where that does not tell why."""
        with self._state:
            model = self._models.get(key)
            return model.words if model is not None else ""

    def replicas(self, key: str) -> list[ReplicaInfo]:
        """Return where the replicas of a model live."""
        with self._state:
            model = self._models.get(key)
            return [replica.info for replica in model.replicas.values()] if model else []

    def close(self, key: str | None = None) -> list[tuple[str, Any, ReplicaInfo]]:
        """Forget a model, or all; return its name and its replicas, for the caller to end."""
        with self._state:
            found = []
            for one in list(self._models) if key is None else [key]:
                model = self._models.pop(one, None)
                if model is not None:
                    self._cleared.add(one)
                    _close(model)
                    found += [(model.spec.model, replica.handle, replica.info) for replica in model.replicas.values()]
            return found

    # --- replicas that come and go ------------------------------------------------------------------------------------

    def _load_first(self, model: Model, fixed_size: bool) -> None:
        if fixed_size and not fits_a_node(model.share):
            model.given_up = no_room(model.spec, model.share)
            return
        placement = model.spec.placement
        self._ask(model, replicas_to_add(placement, model.share), placement.min_replicas)

    def _ask(self, model: Model, n: int, at_least: int) -> None:
        """Ask for replicas; without `at_least` of them, the model fails. Others may wait for room as long as wanted."""
        arrivals = self._start(model, n)
        model.note("asked", n)
        self._submit(model, self._load, model, arrivals, at_least)

    def _ask_beside(self, model: Model, n: int) -> None:
        """Ask for replicas on CPUs beside those with GPUs. None of them must come."""
        share = cpu_share_of(model.spec.placement)
        self._submit(model, self._try, model, self._start(model, n, share=share), 0, share=share)

    def _start(
        self, model: Model, n: int, avoided: frozenset[str] = frozenset(), share: Share | None = None
    ) -> list[Arrival]:
        """Start actors, which count from now on, so that nobody asks for them again; with a `share`, on CPUs beside."""
        keep_alive_s = model.spec.placement.keep_alive_s if self._shared else None
        arrivals = [start(share or model.share, keep_alive_s, _NAME, avoided) for _ in range(n)]
        for arrival in arrivals:
            arrival.beside = share is not None
        model.arrivals += arrivals
        return arrivals

    def _submit(self, model: Model, function: Any, *args: Any, **kwargs: Any) -> None:
        running = [load for load in model.loads if not load.done()]
        model.loads = [*running, self._loaders.submit(function, *args, **kwargs)]

    def _replace_dead(self, model: Model, place: Place) -> None:
        """Replace a replica that died by itself, unless they do nothing but die."""
        model.deaths += 1
        if model.deaths < _MOST_DEATHS * (1 + len(model.replicas)):
            self._submit(model, self._replace, model, place, self._start(model, 1))
            return
        model.given_up = why_given_up(model.spec, model.deaths, model.words)
        _close(model)
        kill(model.clear())

    def _keep_balance(self) -> None:
        if self._balancing is None:
            self._balancing = threading.Thread(target=self._balance_for_ever, name="balance", daemon=True)
            self._balancing.start()

    def _balance_for_ever(self) -> None:
        while True:
            time.sleep(_BALANCE_S)
            try:
                self._balance.look()
                with self._state:
                    models, now = list(self._models.values()), time.monotonic()
                    ended = self._balance.step(models, now)
                    for model in [] if self._shared else self._balance.unused(models, now):
                        _close(self._models.pop(model.spec.key))  # whoever asks for it again has it loaded again
                        ended += model.clear()
                kill(ended)
                self._recount()
            except Exception:
                _logger.exception("The replicas could not be balanced; it is tried again.")

    def _recount(self) -> None:
        """Ask replicas whose calls take long how many they have: callers that died do not tell of theirs."""
        with self._state:
            suspects = self._balance.suspects(list(self._models.values()), time.monotonic())
        for replica, touched in suspects:
            calls = replica.handle.calls.options(concurrency_group="aside").remote()
            done, _ = ray.wait([calls], timeout=_BALANCE_S)
            with self._state:
                if done and replica.touched == touched and isinstance(found := _count(calls), int):
                    replica.forget(min(found, replica.load.calls))

    # --- in threads of its own ---------------------------------------------------------------------------------------

    def _replace(self, model: Model, place: Place, arrivals: list[Arrival]) -> None:
        """Load a replica in place of one that died at `place`."""
        model.words = words_of(place) or model.words
        self._load(model, arrivals, int(not model.replicas))

    def _load(self, model: Model, arrivals: list[Arrival], at_least: int) -> None:
        """Load replicas that were asked for; raise unless `at_least` of them find room and load.

        What cannot load is tried once more, on other nodes if there are any: a file may be damaged on one of them, or
        memory short. Where a process leaves words that tell why it died, the same node would end it again.
        """
        failed = self._try(model, arrivals, at_least)
        if failed and not model.closed:
            avoided = nodes_to_avoid(model.share, {place.node for place, _ in failed})
            died = [place for place, error in failed if isinstance(error, DIED)]
            words = next(filter(None, map(words_of, died)), "")
            model.words = words or model.words
            if avoided or (died and not words):
                self._try_elsewhere(model, len(failed), avoided)
        with self._state:
            enough = model.closed or len(model.replicas) >= at_least
            model.is_ready = model.is_ready or (enough and bool(model.replicas))
            if failed:
                model.grow_at = time.monotonic() + model.grow_pause_s
                model.grow_pause_s *= 2
            if not enough:
                kill(model.clear())
        if not enough and failed:
            raise why_not_loaded(model.spec, failed[0][1], model.words)
        if failed:
            _logger.warning("%d replica(s) of %s could not load: %s", len(failed), model.spec.model, failed[0][1])

    def _try_elsewhere(self, model: Model, n: int, avoided: frozenset[str]) -> None:
        with self._state:
            arrivals = self._start(model, n, avoided)
        self._try(model, arrivals, at_least=0, timeout_s=patience_s(model.spec.placement))

    def _try(
        self,
        model: Model,
        arrivals: list[Arrival],
        at_least: int,
        timeout_s: float | None = None,
        share: Share | None = None,
    ) -> list[Failure]:
        """Return the failures of those that found room, each with its place. Those that load join at once."""
        if at_least:
            timeout_s = patience_s(model.spec.placement)

        def join(arrival: Arrival, info: ReplicaInfo) -> None:
            self._join(model, arrival, info)

        probes = model.deaths >= _DOUBTS  # is it one row after the other, or the model itself?
        try:
            placed = partial(model.note, "placed")
            given = model.spec, share or model.share, join, lambda: model.closed, placed, model.source_for, probes
            failed = Bringing(*given).bring(arrivals, timeout_s)
        finally:
            with self._state:
                model.arrivals = [one for one in model.arrivals if one not in arrivals]
        n_placed = sum(arrival.placed_at is not None for arrival in arrivals)
        with self._state:
            lacks = max(n_placed, len(model.replicas)) < at_least and not model.closed
            if lacks:
                kill(model.clear())
        if lacks:
            raise no_room(model.spec, model.share, timeout_s)
        return failed

    def _join(self, model: Model, arrival: Arrival, info: ReplicaInfo) -> None:
        now = time.monotonic()
        with self._state:
            if model.closed:
                ray.kill(arrival.actor)
                return
            model.arrivals.remove(arrival)
            model.start_s = now - arrival.asked_at
            model.replicas[next(self._numbers)] = Replica(
                arrival.actor, info, arrival.place, beside=arrival.beside, touched=now
            )
            model.is_ready = model.is_ready or len(model.replicas) >= model.spec.placement.min_replicas
            model.note("fetched", since_s=info.load_s - info.fetch_s)
            model.note("loaded")


def _close(model: Model) -> None:
    """End what is on its way."""
    model.closed = True
    kill(arrival.actor for arrival in model.arrivals)


def _count(calls: Any) -> Any:
    try:
        return ray.get(calls)
    except DIED as error:
        return error


def _unloaded(key: str) -> ClusterError:
    return ClusterError(f"{key} was unloaded while it was in use.", "Call predict again to load it.")
