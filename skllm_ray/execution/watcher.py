"""Detached actors that look after something, again and again, while no driver runs.

A watcher outlives the driver that started it, and Ray starts it anew where its process dies. It is made of its
arguments alone, so they tell all that it needs but credentials: those are handed to it, and live in its memory.
"""

from __future__ import annotations

import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError
from skllm_ray.execution import ray_state

if TYPE_CHECKING:
    from skllm_ray.execution.secrets import Sealed

STARTING_S: Final = 120.0
"""The longest wait for a watcher's answer, in seconds: its process may have to start."""
_THREADS: Final = 4
_PIECE: Final = 64_000  # Ray keeps arguments of up to 100 kB with an actor, and 10 MB in all


class Watcher(ABC):
    """Looks, waits as long as that said, and looks again, in a thread of its own."""

    def __init__(self) -> None:
        self._secrets: dict[str, Secret] = {}
        self._woken = threading.Event()
        self._starting = threading.Lock()
        self._thread = self._started()

    @abstractmethod
    def _look(self) -> float | None:
        """Do what is due; return the seconds until something else is, or None at the end."""

    def _end(self) -> None:  # noqa: B027  most go on for ever
        """Go, since there is nothing more to look after."""

    def wake(self, secrets: Sealed) -> int:
        """Take in credentials, and look now; return this process's ID."""
        self._secrets.update(secrets.open())
        with self._starting:
            if not self._thread.is_alive():
                self._thread = self._started()
        self._woken.set()
        return os.getpid()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="skllm-ray-watcher", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self._woken.clear()
            pause_s = self._look()
            if pause_s is None:
                self._end()
                return
            self._woken.wait(pause_s)


def start_watcher(kind: type[Watcher], name: str, *given: Any, is_local: bool) -> Any:
    """Return the watcher of a name, started unless it runs.

    Parameters
    ----------
    kind : type
        Its class.
    name : str
        Its name.
    *given
        What its class takes. Ray keeps small arguments by themselves, and so knows them after the driver's death.
    is_local : bool
        Whether it must stay on this node, since what it looks after is seen here alone.
    """
    import ray

    options: dict[str, Any] = {
        "name": name,
        "namespace": ray_state.NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": _THREADS,
    }
    return ray.remote(kind).options(**options, **(on_this_node() if is_local else {})).remote(*given)


def wake_watcher(actor: Any, secrets: Mapping[str, Secret], *, timeout_s: float | None = STARTING_S) -> None:
    """Hand credentials to a watcher; with `timeout_s=None`, without waiting for its answer."""
    import ray

    from skllm_ray.execution.secrets import Sealed

    told = actor.wake.remote(Sealed(secrets.values()))
    if timeout_s is not None:
        ray.get(told, timeout=timeout_s)


@contextmanager
def answering(whose: str, hint: str) -> Iterator[None]:
    """Say whose watcher does not answer, where it does not.

    Raises
    ------
    ClusterError
        Then.
    """
    import ray

    try:
        yield
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(f"The watcher of {whose} does not answer: {type(error).__name__}.", hint) from None


def named_watchers(prefix: str) -> dict[str, Any]:
    """Return this cluster's watchers whose names begin so, by name."""
    import ray

    found = {}
    for told in ray.util.list_named_actors(all_namespaces=True):
        if told["namespace"] == ray_state.NAMESPACE and told["name"].startswith(prefix):
            with suppress(ValueError):  # it has just ended
                found[told["name"]] = ray.get_actor(told["name"], namespace=ray_state.NAMESPACE)
    return found


def end_watcher(actor: Any) -> None:
    """End a watcher for good, whatever it does."""
    import ray

    ray.kill(actor, no_restart=True)


def on_this_node() -> dict[str, Any]:
    """Return the Ray options that keep work on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def node_of_driver() -> str:
    """Return the ID of the node on which this process runs."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def stood_back(actor: Any, timeout_s: float) -> bool:
    """Ask a watcher to ``stand_back``; return whether it has done so in time, or is gone."""
    import ray

    try:
        ray.get(actor.stand_back.remote(), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        return False
    except ray.exceptions.RayError:
        return True
    return True


def as_pieces(thing: Any) -> list[bytes]:
    """Return a pickle in pieces that are small enough for Ray to keep them with an actor, for its next start."""
    from ray import cloudpickle

    pickled = cloudpickle.dumps(thing)
    return [pickled[at : at + _PIECE] for at in range(0, len(pickled), _PIECE)]


def from_pieces(pieces: Iterable[bytes]) -> Any:
    """Return what :func:`as_pieces` has pickled."""
    return pickle.loads(b"".join(pieces))  # noqa: S301  Ray has pickled it for this actor
