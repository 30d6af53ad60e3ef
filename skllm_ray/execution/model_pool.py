"""Model actors that outlive calls: one pool actor per job creates, replaces and hands them out.

Only the pool creates model actors, so that they live as long as the job, whichever process asked first. A replica that
dies is replaced by the pool when a caller reports it; the caller then asks again, and halves the block when it dies a
second time, so that one row that kills its model costs itself alone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from skllm_ray.errors import ClusterError, ModelLoadError, PlacementError, SkllmRayError, SkllmRayWarning
from skllm_ray.execution import children, session
from skllm_ray.execution.model_actor import IdleExit, ModelActor, ReplicaInfo
from skllm_ray.execution.progress import download_bar
from skllm_ray.execution.session import NAMESPACE
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.gpt.clients.llama_cpp.handler import Freed, ModelCache
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError

PLACEMENT_TIMEOUT_S = 60.0
"""How long model actors may wait for room before the call fails."""
_logger = logging.getLogger(__name__)
_SHARED_POOL_IDLE_S = 24 * 3600.0
_CHILDREN_KEEP_ALIVE_S = 20.0
_MOST_THREADS = 8  # per replica, where the user does not say: llama.cpp gains little beyond on most machines


@dataclass(slots=True)
class _Replica:
    handle: Any
    info: ReplicaInfo
    in_flight: int = 0


@dataclass(slots=True)
class _Model:
    spec: BackendSpec
    share: Share
    replicas: dict[int, _Replica] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """What one replica takes, and how many there are to be."""

    num_cpus: float
    num_gpus: float
    threads: int
    n_replicas: int
    min_replicas: int


class _Pool:
    """The pool actor. Loading a model takes a thread of it, so that other models are handed out meanwhile."""

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._idle = IdleExit(_SHARED_POOL_IDLE_S if shared else None)
        self._models: dict[str, _Model] = {}
        self._state = threading.Lock()
        self._loading: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._numbers = itertools.count()
        self._arriving: dict[str, list[Any]] = {}

    def open(self, spec: BackendSpec, share: Share) -> tuple[BackendSpec, int]:
        """Start and load the replicas of `spec` if they are not; return their spec and how many."""
        with self._loading[spec.key]:
            model = self._models.get(spec.key)
            if model is not None and self._shared:
                self._drop_gone(model)
            if model is None or not model.replicas:
                model = _Model(spec, share)
                self._add(model, share.n_replicas, share.min_replicas)
                with self._state:
                    self._models[spec.key] = model
            return model.spec, len(model.replicas)

    def transfers(self, key: str) -> list[Any]:
        """Return the downloads of the replicas that are being loaded."""
        answers = [actor.transfer.remote() for actor in self._arriving.get(key, [])]
        with contextlib.suppress(RayActorError, GetTimeoutError):
            return [found for found in ray.get(answers, timeout=5) if found is not None]
        return []

    def take(self, key: str, n: int) -> list[tuple[int, Any]]:
        """Return `n` replicas, the least loaded first, each counted as one call in flight."""
        self._idle.touch()
        with self._state:
            model = self._models.get(key)
            if model is None:
                raise ClusterError(f"{key} was unloaded while it was in use.", "Call predict again to load it.")
            if not model.replicas:
                raise _no_room(model.spec, model.share)
            chosen = []
            for _ in range(n):
                number, replica = min(model.replicas.items(), key=lambda item: item[1].in_flight)
                replica.in_flight += 1
                chosen.append((number, replica.handle))
            return chosen

    def give_back(self, key: str, numbers: Sequence[int]) -> None:
        """Count the calls as finished."""
        with self._state:
            model = self._models.get(key)
            for number in numbers:
                if model is not None and number in model.replicas:
                    model.replicas[number].in_flight -= 1

    def replace(self, key: str, number: int) -> None:
        """Start a new replica for one that died. Several callers may report the same death."""
        with self._loading[key]:
            with self._state:
                model = self._models.get(key)
                dead = model.replicas.pop(number, None) if model is not None else None
            if model is None or dead is None:
                return
            ray.kill(dead.handle)
            self._add(model, 1, 0 if model.replicas else 1)

    def replicas(self, key: str) -> list[ReplicaInfo]:
        """Return where the replicas of a model live."""
        with self._state:
            model = self._models.get(key)
            return [replica.info for replica in model.replicas.values()] if model else []

    def _drop_gone(self, model: _Model) -> None:
        """Forget replicas that ended because nobody used them."""
        for number, replica in list(model.replicas.items()):
            try:
                ray.get(replica.handle.touch.remote())
            except RayActorError:
                model.replicas.pop(number)

    def close(self, key: str) -> list[ReplicaInfo]:
        """Unload a model; its actors' processes are gone when this returns what they held."""
        with self._state:
            model = self._models.pop(key, None)
        replicas = list(model.replicas.values()) if model else []
        held = [_unload(replica) for replica in replicas]
        for replica in replicas:
            ray.kill(replica.handle)
        for replica in replicas:
            _wait_until_gone(replica.handle)
        return held

    def touch(self) -> None:
        """Count as used."""
        self._idle.touch()

    def is_open(self, key: str) -> bool:
        """Return whether the model is loaded."""
        return key in self._models

    def _add(self, model: _Model, wanted: int, at_least: int) -> None:
        """Start and load up to `wanted` replicas; raise unless `at_least` of them find room and load.

        What cannot load is tried once more on other nodes: a file may be damaged, or memory short, on one of them.
        """
        before = len(model.replicas)
        failed = self._add_once(model, wanted, at_least, frozenset())
        if not failed:
            return
        avoided = _nodes_to_avoid(model.share, {node for node, _ in failed})
        if avoided or any(isinstance(error, RayActorError) for _, error in failed):
            self._add_once(model, len(failed), 0, avoided)
        if len(model.replicas) - before < at_least:
            raise _why_not_loaded(model.spec, failed[0][1])
        _logger.warning("%d replica(s) of %s could not load: %s", len(failed), model.spec.model, failed[0][1])

    def _add_once(
        self, model: _Model, wanted: int, at_least: int, avoided: frozenset[str]
    ) -> list[tuple[str, Exception]]:
        """Return the failures of those that were placed but could not load, each with its node's ID."""
        keep_alive_s = model.spec.placement.keep_alive_s if self._shared else None
        actors = [_start_actor(model.share, keep_alive_s, avoided) for _ in range(wanted)]
        pings = {actor.ping.remote(): actor for actor in actors}
        placed, waiting = ray.wait(list(pings), num_returns=wanted, timeout=PLACEMENT_TIMEOUT_S)
        started = [pings[ping] for ping in placed]
        try:
            for ping in waiting:
                ray.kill(pings[ping])
            if len(started) < at_least:
                raise _no_room(model.spec, model.share)
            self._arriving[model.spec.key] = started
            nodes = {actor: _node_of(actor) for actor in started}
            answers = [actor.load.remote(model.spec, model.share.threads) for actor in started]
            infos = [_result(answer) for answer in answers]
        except BaseException:
            for actor in started:
                ray.kill(actor)
            raise
        finally:
            self._arriving.pop(model.spec.key, None)
        failed = []
        for actor, info in zip(started, infos, strict=True):
            if isinstance(info, ReplicaInfo):
                with self._state:
                    model.replicas[next(self._numbers)] = _Replica(actor, info)
            else:
                ray.kill(actor)
                failed.append((nodes[actor], info))
        return failed


def _start_actor(share: Share, keep_alive_s: float | None, avoided: frozenset[str]) -> Any:
    # One thread works, the other answers how far a download is.
    options: dict[str, Any] = {"num_cpus": share.num_cpus, "num_gpus": share.num_gpus, "max_concurrency": 2}
    if keep_alive_s is not None:  # outlives the job that asked first; ends itself when idle
        options |= {"lifetime": "detached", "name": f"model-{uuid.uuid4().hex}", "namespace": NAMESPACE}
    if avoided:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
    return ray.remote(ModelActor).options(**options).remote(share.num_gpus == 0, keep_alive_s)


def _node_of(actor: Any) -> str:
    """Return the ID of the node that a placed actor is on; empty if it has died."""
    try:
        return str(ray.get(actor.node_id.remote()))
    except RayActorError:
        return ""


def _result(answer: Any) -> ReplicaInfo | Exception:
    try:
        found: ReplicaInfo = ray.get(answer)
    except (RayActorError, RayTaskError) as error:
        return error
    return found


def _nodes_to_avoid(share: Share, failed: set[str]) -> frozenset[str]:
    """Return the nodes where loading failed, if there are others that could hold a replica; else none."""
    others = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in failed]
    fit = any(node.get("CPU", 0) >= share.num_cpus and node.get("GPU", 0) >= share.num_gpus for node in others)
    return frozenset(failed - {""}) if fit else frozenset()


def _why_not_loaded(spec: BackendSpec, error: Exception) -> BaseException:
    if isinstance(error, RayTaskError):
        return _cause(error)
    return ModelLoadError(
        f"The process that was to load {spec.model} died.",
        "The node may be short of memory: ask for fewer replicas with SKLLMConfig.set_gguf_resources, or for a smaller "
        "model.",
    )


def _unload(replica: _Replica) -> ReplicaInfo:
    try:
        found: ReplicaInfo = ray.get(replica.handle.unload.remote(), timeout=5)
    except (RayError, GetTimeoutError):  # dead, or busy with a block that nobody waits for
        return replica.info
    return found


def _wait_until_gone(handle: Any) -> None:
    with contextlib.suppress(RayActorError, GetTimeoutError):
        ray.get(handle.ping.remote(), timeout=10)


def _no_room(spec: BackendSpec, share: Share) -> PlacementError:
    have = ", ".join(f"{name} {amount:g}" for name, amount in sorted(_resources(ray.cluster_resources()).items()))
    free = ", ".join(f"{name} {amount:g}" for name, amount in sorted(_resources(ray.available_resources()).items()))
    return PlacementError(
        f"No room for {share.min_replicas} actor(s) of {spec.model}, each of {share.num_cpus:g} CPU and "
        f"{share.num_gpus:g} GPU, within {PLACEMENT_TIMEOUT_S:g} s. "
        f"The cluster has {have}; free now: {free or 'none'}.",
        "Ask for less with SKLLMConfig.set_gguf_resources(…), free the cluster, or add nodes.",
    )


def _resources(found: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in found.items() if name in {"CPU", "GPU"}}


# --- the callers' side --------------------------------------------------------------------------------------------

_pools: dict[str, Any] = {}


Owner = Literal["job", "parent", "all"]
"""Whose a pool is: this job's, that of the process which started this one, or that of all jobs."""


def _pool(owner: Owner = "job") -> Any:
    """Return the pool actor of `owner`, created by the first process that asks; a parent's must be there."""
    key = f"{session.job_key()} {owner}"
    if key in _pools and owner != "job" and not _answers(_pools[key]):
        del _pools[key]
    if key not in _pools:
        if owner == "parent":
            _pools[key] = ray.get_actor(f"pool-{_parent_job()}", namespace=NAMESPACE)
            return _pools[key]
        job = ray.get_runtime_context().get_job_id()
        actor = ray.remote(_Pool).options(
            name="pool-shared" if owner == "all" else f"pool-{job}",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached" if owner == "all" else None,
            num_cpus=0,
            max_concurrency=32,
        )
        _pools[key] = actor.remote(shared=owner == "all")  # kept: the actor lives as long as its handle
    return _pools[key]


def _parent_job() -> str:
    """Return the job of the process that started this one, if it told; else an empty string."""
    known = None if session.in_ray_worker() else children.parent()
    return known[1] if known else ""


def _owner(spec: BackendSpec) -> tuple[Owner, BackendSpec]:
    """Return whose actors hold the model of `spec`, and the spec as they are to load it.

    The children of one process, such as joblib's, share models: each is a job of its own to Ray, and they would take
    the room from one another.
    """
    if spec.placement.keep_alive_s is not None:
        return "all", spec
    if not _parent_job():
        return "job", spec
    with contextlib.suppress(ValueError, RayActorError):
        if _call(_pool("parent").is_open.remote(spec.key)):
            return "parent", spec
    own: Any = spec
    return "all", replace(own, resources=replace(own.resources, keep_alive_s=_CHILDREN_KEEP_ALIVE_S))


def _answers(pool: Any) -> bool:
    try:
        ray.get(pool.touch.remote())
    except RayActorError:
        return False
    return True


def connect(spec: BackendSpec) -> PooledBackend:
    """Return the pool of `spec`, its model loaded at the first call of the job.

    Raises
    ------
    PlacementError
        If the cluster has no room for the actors.
    ModelLoadError
        If the model cannot be loaded.
    """
    held = ModelCache.get(spec.key)
    job = session.job_key()
    if not isinstance(held, PooledBackend) or held.job != job or (held.shared and not held.is_open()):
        owner, spec = _owner(spec)
        pool = _pool(owner)
        share = plan(spec)
        if not _call(pool.is_open.remote(spec.key)):
            _refuse_impossible(spec, share)
        opening = pool.open.remote(spec, share)
        _watch_download(pool, opening, spec)
        loaded, n_replicas = _call(opening)
        ModelCache.forget(spec.key)  # closing the old one would close the new one
        held = PooledBackend(loaded, n_replicas, job, owner)
        ModelCache.store(spec.key, held)
    if held.spec != spec and not _parent_job():
        warnings.warn(
            f"{spec.model} stays loaded with the settings of its first use; changed ones take effect after "
            "ModelCache.clear().",
            SkllmRayWarning,
            stacklevel=2,
        )
    return held


def _watch_download(pool: Any, opening: Any, spec: BackendSpec) -> None:
    """Show how far the model's file is, where it has to come from elsewhere first."""
    with download_bar(spec.model) as show:
        while not ray.wait([opening], timeout=0.5)[0]:
            found = ray.get(pool.transfers.remote(spec.key))
            if found:  # one for each node: the slowest decides
                slowest = min(found, key=lambda transfer: transfer.done)
                show(slowest.done, slowest.total)


def plan(spec: BackendSpec) -> Share:
    """Decide what each replica takes and how many there are to be, from what the cluster's nodes have."""
    asked = spec.placement
    sizes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    if asked.num_cpus is None:
        threads = int(max(1, min(_MOST_THREADS, max(sizes, default=1))))
        num_cpus = float(threads - 1)  # one is left for whoever reads and writes
    else:
        threads, num_cpus = max(1, int(asked.num_cpus)), float(asked.num_cpus)
    room = _room(num_cpus, asked.num_gpus, len(sizes))
    most = asked.max_replicas or max(asked.min_replicas, min(room, len(sizes)))
    return Share(num_cpus, asked.num_gpus, threads, max(asked.min_replicas, min(most, room)), asked.min_replicas)


def _refuse_impossible(spec: BackendSpec, share: Share) -> None:
    """Raise at once where no node is large enough and no other can come."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = any(node.get("CPU", 0) >= share.num_cpus and node.get("GPU", 0) >= share.num_gpus for node in nodes)
    if not fits and session.is_fixed_size():
        raise _no_room(spec, share)


def _room(num_cpus: float, num_gpus: float, n_nodes: int) -> int:
    free = ray.available_resources()
    fits = [free.get(name, 0.0) / need for name, need in (("CPU", num_cpus), ("GPU", num_gpus)) if need]
    return int(min(fits)) if fits else n_nodes


def is_nested_without_room(spec: BackendSpec) -> bool:
    """Return whether a call from inside a task must load the model here, because its actors could never be placed.

    The task itself holds resources while it waits for the answer, so waiting for room could wait for ever.
    """
    if spec.placement.num_gpus or _call(_pool().is_open.remote(spec.key)):
        return False
    share = plan(spec)
    return _room(share.num_cpus, share.num_gpus, 1) < share.min_replicas


class PooledBackend:
    """A backend whose model lives in a pool's actors. Picklable: Dataset tasks hold it too."""

    def __init__(self, spec: BackendSpec, n_replicas: int, job: str, owner: Owner = "job") -> None:
        self.spec = spec
        self.n_replicas = n_replicas
        self.job = job
        self.owner = owner

    @property
    def shared(self) -> bool:
        """Whether the model stays when this job ends."""
        return self.owner != "job"

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request; a block from the driver is spread over all replicas at once."""
        return self._spread("complete", requests, lambda error, deaths: Reply(error=error, attempts=deaths))

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, spread likewise."""
        return self._spread("embed", texts, lambda error, deaths: Embedding(error=error, attempts=deaths))

    def close(self) -> list[Freed]:
        """Unload the model from all nodes."""
        if not session.is_initialised() or session.job_key() != self.job:
            return []
        held = ray.get(self._pool.close.remote(self.spec.key))
        return [Freed(self.spec.model, info.node, info.pid, info.memory_mb) for info in held]

    def replicas(self) -> list[ReplicaInfo]:
        """Return where the model's replicas live."""
        return list(ray.get(self._pool.replicas.remote(self.spec.key)))

    def is_open(self) -> bool:
        """Return whether the model is still loaded: others may have unloaded a shared one."""
        try:
            return bool(_call(self._pool.is_open.remote(self.spec.key)))
        except (ValueError, RayActorError):  # the pool has ended, and with it its models
            return False

    @property
    def _pool(self) -> Any:
        return _pool(self.owner)

    def _spread(self, verb: str, items: Sequence[Any], crashed: Crashed) -> list[Any]:
        n_slices = 1 if len(items) <= _SMALLEST_SLICE else self.n_replicas
        return self._call(verb, _slices(items, n_slices), crashed, deaths=0)

    def _call(self, verb: str, parts: Sequence[Sequence[Any]], crashed: Crashed, deaths: int) -> list[Any]:
        taken = _call(self._pool.take.remote(self.spec.key, len(parts)))
        answers = [handle.call.remote(verb, part) for part, (_, handle) in zip(parts, taken, strict=True)]
        found: list[Any] = []
        try:
            for part, answer, (number, _) in zip(parts, answers, taken, strict=True):
                try:
                    found += ray.get(answer)
                except RayActorError:
                    ray.get(self._pool.replace.remote(self.spec.key, number))
                    found += self._after_death(verb, part, crashed, deaths + 1)
                except RayTaskError as error:
                    raise _cause(error) from None
        finally:
            self._pool.give_back.remote(self.spec.key, [number for number, _ in taken])
        return found

    def _after_death(self, verb: str, part: Sequence[Any], crashed: Crashed, deaths: int) -> list[Any]:
        """Ask again; from the second death on by halves, down to the one item that kills its model."""
        if deaths < _DEATHS_BEFORE_HALVING:
            return self._call(verb, [part], crashed, deaths)
        if len(part) == 1:
            message = f"The process that held {self.spec.model} died {deaths} times while it worked on this row."
            return [crashed(RowError("model_crashed", message), deaths)]
        middle = len(part) // 2
        first = self._call(verb, [part[:middle]], crashed, deaths - 1)
        return first + self._call(verb, [part[middle:]], crashed, deaths - 1)


Crashed = Callable[[RowError, int], Any]
"""Makes a row's failure of an error and the number of attempts."""
_SMALLEST_SLICE = 16
_DEATHS_BEFORE_HALVING = 2


def _slices(items: Sequence[Any], n: int) -> list[Sequence[Any]]:
    size = -(-len(items) // n)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _call(reference: Any) -> Any:
    """Return an actor's answer, or raise our own error where it raised one, without Ray's trace around it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise _cause(error) from None


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, SkllmRayError) else error
