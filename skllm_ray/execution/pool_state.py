"""What the pool actor knows of each model: its replicas, what loads, and what went wrong."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from skllm_ray.errors import ClusterError
from skllm_ray.execution.last_words import Place
from skllm_ray.execution.model_actor import ReplicaInfo
from skllm_ray.execution.placement import Share
from skllm_ray.llm.base import StatefulSpec

NOWHERE: Final = Place("")
"""Where an actor is that died before it told."""
_GROW_AGAIN_S: Final = 60.0  # after a failure, doubled each time


@dataclass(slots=True)
class Replica:
    """An actor that holds a model, and how many calls it works at."""

    handle: Any
    info: ReplicaInfo
    place: Place = NOWHERE
    in_flight: int = 0


@dataclass(slots=True)
class Model:
    """A model that somebody opened: its actors, and those that are on their way."""

    spec: StatefulSpec
    share: Share
    number: int
    replicas: dict[int, Replica] = field(default_factory=dict)
    loads: list[Future[None]] = field(default_factory=list)
    arriving: list[Any] = field(default_factory=list)
    """Actors that have found room and load."""
    closed: bool = False
    given_up: ClusterError | None = None
    deaths: int = 0
    """Since the last answer."""
    words: str = ""
    """What the process that died last wrote at its end, where that tells why."""
    grow_at: float = 0.0
    grow_pause_s: float = _GROW_AGAIN_S

    @property
    def is_loading(self) -> bool:
        """Whether replicas are on their way."""
        return any(not load.done() for load in self.loads)

    @property
    def failure(self) -> BaseException | None:
        """Why there is no replica and none on its way; None where there is one."""
        if self.given_up is not None or self.replicas or self.is_loading:
            return self.given_up
        return next((error for load in reversed(self.loads) if (error := load.exception()) is not None), None)


@dataclass(frozen=True, slots=True)
class Opened:
    """How far a model is."""

    number: int
    """Which loading of the model this is; to be given when asking again."""
    spec: StatefulSpec
    """With the settings of its first use."""
    n_replicas: int
    """0 while it loads."""
    arriving: tuple[Any, ...]
    """The actors that load."""


def opened(model: Model) -> Opened:
    """Return how far `model` is."""
    return Opened(model.number, model.spec, len(model.replicas), tuple(model.arriving))
