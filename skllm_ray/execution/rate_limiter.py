"""The limit that all jobs of a cluster share: one detached actor around ``Quotas``."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from skllm_ray.config import RateLimit
from skllm_ray.errors import ClusterError
from skllm_ray.execution.metrics import show_quotas
from skllm_ray.execution.ray_state import NAMESPACE, job_key, shared_name
from skllm_ray.llm.rate_limit.installed import current_limiter, install_limiter
from skllm_ray.llm.rate_limit.limiter import Quotas
from skllm_ray.llm.rate_limit.messages import BucketInfo, Grant, Left, Refusal, Released, Report
from skllm_ray.tasks.base import RowError

__all__ = ["BucketInfo", "ClusterLimiter", "show_limits", "use_cluster_limiter"]

_NAME = shared_name("rate-limiter", Report, Grant, Released, Refusal, Left, BucketInfo, RateLimit, RowError)
_ANSWER_S = 5.0
_LONGEST_RETRY_S = 1.0
_TELL_S = 10.0
_REPLACE_S = 30.0
"""How long the limiter may give no answer before it is ended: Ray starts it anew."""
_SHOW_S = 5.0
_SILENT_S = 3.0
_logger = logging.getLogger(__name__)
_installing = threading.Lock()


class _LimiterActor:
    """Knows nothing after a restart: its buckets start empty, and its holders tell it what they used."""

    def __init__(self) -> None:
        self._quotas = Quotas()
        self._shown_at: dict[str, float] = {}
        self._silent: set[str] = set()
        self._dead: set[str] = set()
        threading.Thread(target=self._look_after_silent, name="skllm-ray-dead-holders", daemon=True).start()

    def exchange(self, report: Report) -> Grant:
        dead, self._dead = self._dead, set()
        if dead:
            self._quotas.bury(dead)
        grant = self._quotas.exchange(report)
        self._silent = self._quotas.silent(_SILENT_S)
        if time.monotonic() - self._shown_at.get(report.bucket, 0.0) > _SHOW_S:
            self._shown_at[report.bucket] = time.monotonic()
            show_quotas(self._quotas.show())
        return grant

    def show(self) -> list[BucketInfo]:
        return self._quotas.show()

    def end(self, call: str, error: RowError) -> None:
        self._quotas.end(call, error)

    def _look_after_silent(self) -> None:
        """Find out which silent holders are dead, so that nobody waits for their requests' deadlines."""
        while True:
            time.sleep(_SILENT_S / 2)
            try:
                self._dead |= {name for name in self._silent if _is_dead(name)}
            except RayError as error:
                _logger.debug("nobody can tell whether a holder lives (%s)", type(error).__name__)


class ClusterLimiter:
    """Asks the cluster's limiter, and finds it again, or starts it anew, when it or its node is lost."""

    def __init__(self) -> None:
        self.job = job_key()
        self._node = str(ray.get_runtime_context().get_node_id())
        self._actor: Any = _find()

    async def exchange(self, report: Report) -> Grant:
        """Return what a holder may do; waits while there is no limiter, since nothing may be sent without one.

        Raises
        ------
        RayTaskError
            If the limiter cannot make sense of the report, as one of another version.
        """
        pause_s, began, is_told, stuck = 0.05, time.monotonic(), False, _Stuck()
        while True:
            try:
                grant = await self._ask(report)
                if is_told:
                    _logger.warning("skllm_ray: the cluster's rate limiter answers again.")
                return grant
            except RayTaskError:  # it is there, and does not understand: it will not do so later
                raise
            except (RayError, TimeoutError) as error:
                if not is_told and time.monotonic() - began >= _TELL_S:
                    is_told = True
                    why = f"{type(error).__name__}, {_TELL_S:g} s"
                    _logger.warning(
                        "skllm_ray: waiting for the cluster's rate limiter, which gives no answer (%s).", why
                    )
                if isinstance(error, TimeoutError):  # Ray itself sees to one that died
                    await asyncio.to_thread(stuck.replace, self._actor)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_RETRY_S, pause_s * 2)
            try:
                self._actor = await asyncio.to_thread(_find)
            except (RayError, ValueError) as error:
                _logger.debug("no rate limiter yet (%s)", type(error).__name__)

    async def _ask(self, report: Report) -> Grant:
        told = replace(report, holder=f"{self._node}/{report.holder}")
        answer: Grant = await asyncio.wait_for(self._actor.exchange.remote(told), _ANSWER_S)
        return answer


class _Stuck:
    """Ends a limiter that is there and gives no answer, such as one that was stopped, so that Ray starts it anew.

    A new limiter knows nothing, and is told by all who use it. Of many that wait, the first one ends it: the others see
    that it was started anew in the meantime.
    """

    def __init__(self) -> None:
        self._since = math.inf
        self._starts: int | None = None

    def replace(self, actor: Any) -> None:
        """Note that there was no answer; end the limiter if there was none for long."""
        now, starts = time.monotonic(), _n_starts(actor)
        if self._since == math.inf or starts != self._starts:
            self._since, self._starts = now, starts
        elif now - self._since >= _REPLACE_S:
            self._since = now
            _logger.warning("skllm_ray: the cluster's rate limiter gives no answer; it is started anew.")
            with suppress(RayError, ValueError):
                ray.kill(actor, no_restart=False)


def _n_starts(actor: Any) -> int | None:
    """Return how often Ray started an actor anew; None where this Ray does not tell."""
    try:
        from ray._private.state import actors
    except ImportError:
        return None
    with suppress(RayError, KeyError):
        return int(actors(actor._actor_id.hex())["NumRestarts"])
    return None


def use_cluster_limiter() -> None:
    """Let this process's requests share the limit of the cluster that it is connected to."""
    with _installing:
        limiter = current_limiter()
        if not isinstance(limiter, ClusterLimiter) or limiter.job != job_key():
            install_limiter(ClusterLimiter())


def end_call(call: str, error: RowError) -> None:
    """Let no process of the cluster send anything more for `call`; those that work for it notice within a second."""
    with suppress(RayError, ValueError, TimeoutError):  # nobody asks a server, or the limiter is just starting anew
        actor: Any = ray.get_actor(_NAME, namespace=NAMESPACE)
        ray.get(actor.end.remote(call, error), timeout=_ANSWER_S)


def show_limits() -> list[BucketInfo]:
    """Return every bucket of the cluster that this process is connected to; empty where nothing was asked yet.

    Raises
    ------
    ClusterError
        If the limiter gives no answer, as while it is started anew.
    """
    try:
        actor: Any = ray.get_actor(_NAME, namespace=NAMESPACE)
    except ValueError:
        return []
    try:
        return list(ray.get(actor.show.remote(), timeout=_ANSWER_S))
    except (RayError, TimeoutError) as error:
        raise ClusterError(
            f"The cluster's rate limiter gives no answer ({type(error).__name__}).",
            "It is started anew by itself; try again in a minute.",
        ) from None


def _find() -> Any:
    """Return the limiter's actor, started now if there is none. It takes no CPU, and prefers the head node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _is_head(node)), None)
    strategy = NodeAffinitySchedulingStrategy(head, soft=True) if head else "DEFAULT"
    options: dict[str, Any] = {
        "name": _NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "scheduling_strategy": strategy,
    }
    return ray.remote(_LimiterActor).options(**options).remote()


def _is_dead(holder: str) -> bool:
    """Return whether a holder's node has left the cluster, or its process is gone there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node, _, name = holder.partition("/")
    pid = name.partition("-")[0]
    if node not in {one["NodeID"] for one in ray.nodes() if one["Alive"]}:
        return True
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    look = ray.remote(_has_process).options(num_cpus=0, scheduling_strategy=strategy)
    try:
        return not ray.get(look.remote(int(pid)), timeout=_ANSWER_S)
    except GetTimeoutError:
        return False


def _has_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_head(node: dict[str, Any]) -> bool:
    return any(name == "node:__internal_head__" for name in node.get("Resources", {}))
