"""Replicas on their way: an actor that waits for room, is placed, and loads its model."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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

from skllm_ray.execution.last_words import NOWHERE, Place
from skllm_ray.execution.model_actor import ModelActor, ReplicaInfo
from skllm_ray.execution.placement import Share
from skllm_ray.execution.ray_state import NAMESPACE
from skllm_ray.llm.base import StatefulSpec

DIED: Final = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,  # the answer was on a node that is gone
    OutOfMemoryError,  # Ray itself killed the process
    WorkerCrashedError,
)
"""What ``ray.get`` raises when an actor's process is gone, and what it was asked with it."""
_TICK_S: Final = 0.5

Failure = tuple[Place, Exception]
"""What went wrong with a replica that had found room, and where."""


@dataclass(slots=True)
class Arrival:
    """A replica on its way."""

    actor: Any
    asked_at: float = field(default_factory=time.monotonic)
    beside: bool = False
    """Whether it is a replica on CPUs, beside those with GPUs."""
    placed_at: float | None = None
    place: Place = NOWHERE
    withdrawn: bool = False
    """Whether it is to end, unless it has found room."""

    @property
    def is_waiting(self) -> bool:
        """Whether it has not found room yet."""
        return self.placed_at is None and not self.withdrawn


@dataclass
class Bringing:
    """Brings some replicas from being asked for to being loaded.

    Parameters
    ----------
    spec : StatefulSpec
        The model's.
    share : Share
        What each takes.
    joined : callable
        Takes each replica when it has loaded; called at once, while others are on their way.
    is_over : callable
        Returns whether the model was closed meanwhile.
    """

    spec: StatefulSpec
    share: Share
    joined: Callable[[Arrival, ReplicaInfo], None]
    is_over: Callable[[], bool]
    placed: Callable[[], None] = lambda: None
    """Called when one has found room."""
    source_of: Callable[[Arrival], Any] = lambda _: None
    """Returns the actor from which one copies the model's files, if it is to copy them."""
    probes: bool = False
    """Whether each must answer a trivial request before it counts as loaded."""
    _pings: dict[Any, Arrival] = field(default_factory=dict)
    _loads: dict[Any, Arrival] = field(default_factory=dict)
    _failures: list[Failure] = field(default_factory=list)

    def bring(self, arrivals: Sequence[Arrival], timeout_s: float | None) -> list[Failure]:
        """Wait until each has loaded, failed, or found no room; return the failures of those that found room.

        Those that find none within `timeout_s` are withdrawn, and so are those that others withdraw.
        """
        self._pings = {arrival.actor.ping.remote(): arrival for arrival in arrivals}
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._pings or self._loads:
            if self.is_over() or (deadline is not None and time.monotonic() >= deadline):
                self._withdraw(self._pings.values())
            self._withdraw(arrival for arrival in self._pings.values() if arrival.withdrawn)
            waiting = [*self._pings, *self._loads]
            if not waiting:
                break
            done, _ = ray.wait(waiting, num_returns=1, timeout=_TICK_S)
            for reference in done:
                if reference in self._pings:
                    self._place(self._pings.pop(reference))
                else:
                    self._take(self._loads.pop(reference), result(reference))
        return self._failures

    def _withdraw(self, arrivals: Any) -> None:
        for arrival in list(arrivals):
            arrival.withdrawn = True
            ray.kill(arrival.actor)
        self._pings = {reference: one for reference, one in self._pings.items() if not one.withdrawn}

    def _place(self, arrival: Arrival) -> None:
        arrival.placed_at = time.monotonic()
        arrival.place = _place_of(arrival.actor)
        self.placed()
        source = self.source_of(arrival)
        spec = self.spec.without_gpu() if arrival.beside else self.spec
        self._loads[arrival.actor.load.remote(spec, self.share.threads, self.probes, source)] = arrival

    def _take(self, arrival: Arrival, info: Any) -> None:
        if isinstance(info, ReplicaInfo):
            self.joined(arrival, info)
        else:
            ray.kill(arrival.actor)
            self._failures.append((arrival.place, info))


def start(share: Share, keep_alive_s: float | None, name: str, avoided: frozenset[str]) -> Arrival:
    """Ask for an actor. While it finds no room, Ray's autoscaler sees it and brings a node.

    Parameters
    ----------
    share : Share
        What it takes.
    keep_alive_s : float or None
        How long it outlives its job when idle; None ends it with the job.
    name : str
        How the names of those begin that outlive their jobs.
    avoided : frozenset of str
        Nodes on which it may not be.
    """
    # One thread works while the next call arrives; the group answers meanwhile.
    options: dict[str, Any] = {"num_cpus": share.num_cpus, "num_gpus": share.num_gpus, "max_concurrency": 2}
    if keep_alive_s is not None:  # outlives the job that asked first; ends itself when idle
        options |= {"lifetime": "detached", "name": f"{name}{uuid.uuid4().hex}", "namespace": NAMESPACE}
    if avoided:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
    in_groups: Any = ray.remote  # its types know no groups
    actor_class = in_groups(concurrency_groups={ModelActor.ASIDE: 2})(ModelActor)
    return Arrival(actor_class.options(**options).remote(share.num_gpus == 0, keep_alive_s))


def _place_of(actor: Any) -> Place:
    """Return where a placed actor lives; nowhere if it has died."""
    try:
        found: Place = ray.get(actor.place.remote())
    except DIED:
        return NOWHERE
    return found


def result(answer: Any) -> Any:
    """Return what an actor answers, or the error that it raised, or died with."""
    try:
        return ray.get(answer)
    except (RayTaskError, *DIED) as error:
        return error


def kill(actors: Iterable[Any]) -> None:
    """End actors."""
    for actor in actors:
        ray.kill(actor)


def end_named(prefix: str) -> None:
    """End the model actors of a shared pool that died: nobody counts them any more, and they hold memory."""
    for found in ray.util.list_named_actors(all_namespaces=True):
        if found["namespace"] == NAMESPACE and found["name"].startswith(prefix):
            try:
                ray.kill(ray.get_actor(found["name"], namespace=NAMESPACE))
            except ValueError:  # it has ended by itself
                continue
