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
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from skllm_ray.config import GGUFResources
from skllm_ray.errors import ClusterError
from skllm_ray.execution.last_words import Place, quoted, why_not_loaded, words_of
from skllm_ray.execution.model_actor import IdleExit, ModelActor, ReplicaInfo
from skllm_ray.execution.placement import Share, fits_a_node, no_room, nodes_to_avoid, replicas_to_add, share_of
from skllm_ray.execution.pool_state import NOWHERE, Model, Opened, Replica, opened
from skllm_ray.execution.ray_state import NAMESPACE, shared_name
from skllm_ray.llm.base import StatefulSpec
from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.tasks.base import ChatRequest, Choices, Embedding, Reply, RowError, Usage

DIED: Final = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,  # the answer was on a node that is gone
    OutOfMemoryError,  # Ray itself killed the process
    WorkerCrashedError,
)
"""What ``ray.get`` raises when an actor's process is gone, and what it was asked with it."""

_logger = logging.getLogger(__name__)
_TOLD: Final = (
    GGUFSpec,
    GGUFOptions,
    GGUFResources,
    ReplicaInfo,
    ChatRequest,
    Choices,
    Reply,
    Embedding,
    RowError,
    Usage,
)
SHARED: Final = shared_name("pool-shared", *_TOLD)
"""The pool that outlives jobs."""
_NAME: Final = shared_name("replica", *_TOLD) + "-"
_IDLE_S: Final = 24 * 3600.0
_TICK_S: Final = 0.5
_GROW_EVERY_S: Final = 1.0
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
        self._cleared: set[str] = set()
        self._state = threading.RLock()
        self._loaders = ThreadPoolExecutor(32, "load")
        self._numbers = itertools.count(time.time_ns())  # none that a pool which died in this one's place gave out
        if shared:
            _end_orphans()

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
                model = Model(spec, share_of(spec.placement), next(self._numbers))
                self._models[spec.key] = model
                self._cleared.discard(spec.key)
                self._submit(model, self._load_first, model, fixed_size)
            return opened(model)

    def look(self, key: str) -> Opened | None:
        """Return how far a model is that somebody opened; None if it is not there and not on its way.

        Every call looks here first, so this is where replicas are added when the cluster has room for more.
        """
        with self._state:
            self._idle.touch()
            model = self._models.get(key)
            if model is None or model.failure is not None or not (model.replicas or model.arriving):
                return None
            most = model.spec.placement.max_replicas
            is_full = most is not None and len(model.replicas) >= most
            if not is_full and not model.is_loading and time.monotonic() >= model.grow_at:
                model.grow_at = time.monotonic() + _GROW_EVERY_S
                self._submit(model, self._grow, model)
            return opened(model)

    def take(self, key: str, n: int) -> list[tuple[int, Any]] | None:
        """Return `n` replicas, the least loaded first, each counted as one call in flight.

        An empty list asks to wait, as a replica that died is being replaced. None: this pool has never heard of the
        model, and so is a new one in place of one that died.
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
            chosen = []
            for _ in range(n if model.replicas else 0):
                number, replica = min(model.replicas.items(), key=lambda item: item[1].in_flight)
                replica.in_flight += 1
                chosen.append((number, replica.handle))
            return chosen

    def give_back(self, key: str, numbers: Sequence[int], answered: bool) -> None:
        """Count the calls as finished; `answered` tells that the model works."""
        with self._state:
            model = self._models.get(key)
            if model is None:
                return
            model.deaths = 0 if answered else model.deaths
            for number in numbers:
                if number in model.replicas:
                    model.replicas[number].in_flight -= 1

    def report_death(self, key: str, number: int) -> None:
        """Start a new replica for one that died. Several callers may report the same death."""
        with self._state:
            model = self._models.get(key)
            dead = model.replicas.pop(number, None) if model is not None else None
            if model is None or dead is None:
                return
            ray.kill(dead.handle)
            model.deaths += 1
            if model.deaths < _MOST_DEATHS * (1 + len(model.replicas)):
                self._submit(model, self._replace, model, dead.place)
                return
            model.given_up = ClusterError(
                f"The processes that held {model.spec.model} died {model.deaths} times in a row without an answer."
                f"{quoted(model.words)}",
                "The machine may be short of memory, or the model or llama.cpp unfit for it.",
            )
            self._close(model)
            _kill(replica.handle for replica in model.replicas.values())
            model.replicas.clear()

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
                    self._close(model)
                    found += [(model.spec.model, replica.handle, replica.info) for replica in model.replicas.values()]
            return found

    def _close(self, model: Model) -> None:
        """End what is on its way."""
        model.closed = True
        _kill(model.arriving)

    # --- in threads of its own ---------------------------------------------------------------------------------------

    def _submit(self, model: Model, function: Any, *args: Any) -> None:
        running = [load for load in model.loads if not load.done()]
        model.loads = [*running, self._loaders.submit(function, *args)]

    def _load_first(self, model: Model, fixed_size: bool) -> None:
        if fixed_size and not fits_a_node(model.share):
            raise no_room(model.spec, model.share)
        placement = model.spec.placement
        self._load(model, replicas_to_add(placement, model.share), placement.min_replicas)

    def _grow(self, model: Model) -> None:
        more = replicas_to_add(model.spec.placement, model.share, len(model.replicas))
        if more > 0:
            self._load(model, more, 0)

    def _replace(self, model: Model, place: Place) -> None:
        """Load a replica in place of one that died at `place`."""
        model.words = words_of(place) or model.words
        self._load(model, 1, 1)

    def _load(self, model: Model, wanted: int, at_least: int) -> None:
        """Start and load up to `wanted` replicas; raise unless `at_least` of them find room and load.

        What cannot load is tried once more, on other nodes if there are any: a file may be damaged on one of them, or
        memory short. Where a process leaves words that tell why it died, the same node would end it again.
        """
        loaded, failed = self._try(model, wanted, at_least, frozenset())
        if failed and not model.closed:
            avoided = nodes_to_avoid(model.share, {place.node for place, _ in failed})
            died = [place for place, error in failed if isinstance(error, DIED)]
            words = next(filter(None, map(words_of, died)), "")
            model.words = words or model.words
            if avoided or (died and not words):
                loaded += self._try(model, len(failed), 0, avoided)[0]
        enough = len(loaded) >= at_least
        with self._state:
            if enough and not model.closed:
                model.replicas.update({next(self._numbers): replica for replica in loaded})
            else:
                _kill(replica.handle for replica in loaded)
            if len(loaded) < wanted:
                model.grow_at = time.monotonic() + model.grow_pause_s
                model.grow_pause_s *= 2
        if not enough and failed:
            raise why_not_loaded(model.spec, failed[0][1], model.words)
        if failed:
            _logger.warning("%d replica(s) of %s could not load: %s", len(failed), model.spec.model, failed[0][1])

    def _try(
        self, model: Model, wanted: int, at_least: int, avoided: frozenset[str]
    ) -> tuple[list[Replica], list[tuple[Place, Exception]]]:
        """Return the replicas that loaded, and the failures of those that found room, each with its place."""
        keep_alive_s = model.spec.placement.keep_alive_s if self._shared else None
        actors = [_start_actor(model.share, keep_alive_s, avoided) for _ in range(wanted)]
        placed = _await_room(model, actors)
        _kill(actor for actor in actors if actor not in placed)
        if len(placed) < at_least:
            _kill(placed)
            raise no_room(model.spec, model.share, model.spec.placement.placement_timeout_s)
        with self._state:
            model.arriving += placed
        try:
            places = [_place_of(actor) for actor in placed]
            answers = [actor.load.remote(model.spec, model.share.threads) for actor in placed]
            infos = [_result(answer) for answer in answers]
            if model.deaths >= _DOUBTS:  # is it one row after the other, or the model itself?
                probes = [_result(actor.probe.remote()) for actor in placed]
                infos = [info if probe is None else probe for info, probe in zip(infos, probes, strict=True)]
        finally:
            with self._state:
                model.arriving = [actor for actor in model.arriving if actor not in placed]
        loaded, failed = [], []
        for actor, place, info in zip(placed, places, infos, strict=True):
            if isinstance(info, ReplicaInfo):
                loaded.append(Replica(actor, info, place))
            else:
                ray.kill(actor)
                failed.append((place, info))
        return loaded, failed


def _start_actor(share: Share, keep_alive_s: float | None, avoided: frozenset[str]) -> Any:
    # One thread works while the next call arrives; the group answers meanwhile.
    options: dict[str, Any] = {"num_cpus": share.num_cpus, "num_gpus": share.num_gpus, "max_concurrency": 2}
    if keep_alive_s is not None:  # outlives the job that asked first; ends itself when idle
        options |= {"lifetime": "detached", "name": f"{_NAME}{uuid.uuid4().hex}", "namespace": NAMESPACE}
    if avoided:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
    in_groups: Any = ray.remote  # its types know no groups
    actor_class = in_groups(concurrency_groups={ModelActor.ASIDE: 2})(ModelActor)
    return actor_class.options(**options).remote(share.num_gpus == 0, keep_alive_s)


def _end_orphans() -> None:
    """End the model actors of a shared pool that died: nobody counts them any more, and they hold memory."""
    for found in ray.util.list_named_actors(all_namespaces=True):
        if found["namespace"] == NAMESPACE and found["name"].startswith(_NAME):
            try:
                ray.kill(ray.get_actor(found["name"], namespace=NAMESPACE))
            except ValueError:  # it has ended by itself
                continue


def _await_room(model: Model, actors: list[Any]) -> list[Any]:
    """Return those actors that find room in time."""
    pings = {actor.ping.remote(): actor for actor in actors}
    waiting, placed = list(pings), []
    deadline = time.monotonic() + model.spec.placement.placement_timeout_s
    while waiting and not model.closed and (left_s := deadline - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(_TICK_S, left_s))
        placed += [pings[ping] for ping in done]
    return placed


def _kill(actors: Any) -> None:
    for actor in actors:
        ray.kill(actor)


def _place_of(actor: Any) -> Place:
    """Return where a placed actor lives; nowhere if it has died."""
    try:
        found: Place = ray.get(actor.place.remote())
    except DIED:
        return NOWHERE
    return found


def _result(answer: Any) -> Any:
    """Return what an actor answers, or the error that it raised, or died with."""
    try:
        return ray.get(answer)
    except (RayTaskError, *DIED) as error:
        return error


def _unloaded(key: str) -> ClusterError:
    return ClusterError(f"{key} was unloaded while it was in use.", "Call predict again to load it.")
