"""Keeps the number of replicas what the policy of `elastic` says: asks for more, lets some go, replaces the drained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from skllm_ray.execution import nodes, placement
from skllm_ray.execution.assignment import LEAST_SLICE
from skllm_ray.execution.placement import Share, no_room, patience_s
from skllm_ray.execution.pool_state import Model, Replica
from skllm_ray.execution.scaling import Claim, Wanted, giver, to_leave, wanted
from skllm_ray.llm.base import Placement

_IDLE_S: Final = 10.0  # after which a replica that is not needed leaves
_WITHDRAW_S: Final = 5.0
_SHARE_S: Final = 5.0  # for which a model waits before another gives a replica back
_GIVEN_S: Final = 30.0  # for which it does not take it back
_SILENT_S: Final = 5.0
_SUSPECTS: Final = 4
_USED_S: Final = 5.0  # for which a model counts as in use after a call
MOST_MODELS: Final = 16
"""Models of a job that stay in actors; of those that nobody uses, the ones used longest ago make room for others."""


class Cluster:
    """What is asked of the cluster; tests put their own in its place."""

    def __init__(self) -> None:
        self.draining: frozenset[str] = frozenset()
        self.autoscales = False

    def look(self) -> None:
        """Ask which nodes are about to go, and whether others can come."""
        self.draining, self.autoscales = nodes.draining(), nodes.autoscales()

    def room(self, share: Share) -> int:
        """Return how many replicas have room now."""
        return placement.room(share)

    def room_beside(self, asked: Placement) -> int:
        """Return how many replicas on CPUs have room now."""
        return placement.room_beside(placement.cpu_share_of(asked))

    def most(self, asked: Placement) -> int:
        """Return how many replicas there may be."""
        return placement.most_replicas(asked)

    def patience_s(self, asked: Placement) -> float:
        """Return how long a model may be without any replica."""
        return patience_s(asked)


class Balance:
    """Decides about twice a second which replicas come and go.

    Parameters
    ----------
    cluster : Cluster
        What is asked of the cluster.
    ask : callable
        Asks for replicas of a model: it gets the model, how many, and how many of them must come.
    ask_beside : callable
        Asks for replicas on CPUs beside those with GPUs: it gets the model, and how many.
    """

    def __init__(
        self, cluster: Cluster, ask: Callable[[Model, int, int], None], ask_beside: Callable[[Model, int], None]
    ) -> None:
        self._cluster = cluster
        self._ask = ask
        self._ask_beside = ask_beside
        self._gave_at = 0.0

    def look(self) -> None:
        """Ask the cluster what the next `step` has to know. It may take time; no lock is needed."""
        self._cluster.look()

    def step(self, models: Sequence[Model], now: float) -> list[Any]:
        """Ask for what is missing; return the actors that are to end."""
        models = [model for model in models if not model.closed and model.given_up is None]
        ended: list[Any] = []
        for model in models:
            self._leave_drained(model)
            plan = self._plan(model, now)
            self._grow(model, plan, now)
            self._shrink(model, plan, now)
            self._give_up(model, now)
            self._keep_beside(model, models, now)
        self._share(models, now)
        for model in models:
            ended += _ended(model)
        return ended

    def replace(self, model: Model, now: float) -> None:
        """Ask for a replacement of a replica that is lost, where there are rows for it."""
        plan = self._plan(model, now)
        self._grow(model, Wanted(max(plan.grow, min(plan.keep, len(model.replicas) + 1)), plan.keep), now)

    def suspects(self, models: Sequence[Model], now: float) -> list[tuple[Replica, float]]:
        """Return some replicas whose calls have been silent for long, each with when it was last heard of."""
        held = [replica for model in models for replica in model.replicas.values()]
        silent = [one for one in held if one.load.calls and now - one.touched > _SILENT_S]
        return [(one, one.touched) for one in sorted(silent, key=lambda one: one.touched)[:_SUSPECTS]]

    def unused(self, models: Sequence[Model], now: float) -> list[Model]:
        """Return the models to unload: those used longest ago, where too many stay or another finds no room."""
        idle = sorted((one for one in models if one.unused_s(now) > _USED_S), key=lambda one: -one.unused_s(now))
        found = idle[: max(0, len(models) - MOST_MODELS)]
        starved = [one for one in models if not one.replicas and any(now - w.asked_at > _SHARE_S for w in one.waiting)]
        if found or not starved or now - self._gave_at < _SHARE_S:
            return found
        gpu = any(one.share.num_gpus for one in starved)
        found = [one for one in idle if bool(one.share.num_gpus) == gpu][:1]  # then look whether that is enough
        self._gave_at = now if found else self._gave_at
        return found

    # --- inside -------------------------------------------------------------------------------------------------------

    def _plan(self, model: Model, now: float) -> Wanted:
        asked = model.spec.placement
        return wanted(model.demand(now), asked.min_replicas, self._cluster.most(asked), model.rate, model.start_s)

    def _leave_drained(self, model: Model) -> None:
        for replica in [*model.staying.values(), *model.beside]:
            if replica.place.node in self._cluster.draining:
                replica.load.leaving = True
                model.note("drained")

    def _grow(self, model: Model, plan: Wanted, now: float) -> None:
        """Ask for the replicas that are missing; those on drained nodes count as gone already."""
        asked, here = model.spec.placement, len(model.staying)
        coming = model.n_coming
        target = max(plan.grow, min(plan.keep, len(model.replicas)))
        if not self._cluster.autoscales and now - model.used_at < _USED_S:  # what is free costs nothing more
            target = max(target, self._cluster.most(asked))
        missing = target - here - coming
        must = max(0, asked.min_replicas - here - coming)
        if missing <= 0 or (now < model.grow_at and model.replicas):
            model.short_since = None if missing <= 0 else model.short_since
            return
        if asked.max_replicas is None or not self._cluster.autoscales:  # only what there is room for, and what must be
            missing = max(must, 0 if model.waiting else min(missing, self._cluster.room(model.share)))
        if missing > 0:
            self._ask(model, missing, int(not model.replicas and not coming))
        model.short_since = now if model.short_since is None else model.short_since

    def _shrink(self, model: Model, plan: Wanted, now: float) -> None:
        """Withdraw what is still waited for where no rows are left for it, and let idle replicas go with their nodes.

        A node that was asked for is on its way: where there is work for it, it may come, though it would not be asked
        for now.
        """
        if not self._cluster.autoscales:
            return
        surplus = len(model.staying) + model.n_coming - plan.keep
        for arrival in model.waiting[max(0, len(model.waiting) - max(0, surplus)) :]:
            if now - arrival.asked_at > _WITHDRAW_S:
                arrival.withdrawn = True
        for number in to_leave(model.seats(now), plan.keep, _IDLE_S):
            model.replicas[number].load.leaving = True

    def _give_up(self, model: Model, now: float) -> None:
        """End a model all whose replicas are gone, and which has waited for room for too long."""
        waiting = model.waiting
        if model.replicas or not waiting or any(arrival.placed_at is not None for arrival in model.arrivals):
            return
        timeout_s = self._cluster.patience_s(model.spec.placement)
        if model.is_ready and now - min(arrival.asked_at for arrival in waiting) > timeout_s:
            model.given_up = no_room(model.spec, model.share, timeout_s)
            for arrival in waiting:
                arrival.withdrawn = True

    def _keep_beside(self, model: Model, models: Sequence[Model], now: float) -> None:
        """Let CPUs that are free work beside the GPUs while rows wait, and leave where others need them."""
        coming = [arrival for arrival in model.arrivals if arrival.beside and not arrival.withdrawn]
        for arrival in coming:
            arrival.withdrawn = arrival.placed_at is None and now - arrival.asked_at > _WITHDRAW_S
        if not (model.share.num_gpus and model.spec.placement.cpu_replicas):
            return
        demand = model.demand(now)
        rows_wait = demand.calls if demand.rows is None else (demand.rows - demand.rows_in_flight) // LEAST_SLICE
        in_the_way = self._is_in_the_way(models, now)
        if in_the_way:
            model.beside_at = now + _GIVEN_S
        missing = min(model.spec.placement.cpu_replicas, rows_wait) - len(model.beside) - len(coming)
        if missing > 0 and now >= model.beside_at:
            model.beside_at = now + _SHARE_S
            missing = min(missing, self._cluster.room_beside(model.spec.placement))
            if missing > 0:
                self._ask_beside(model, missing)
        for replica in model.beside:
            idle = not replica.load.calls and now - replica.touched > _IDLE_S and self._cluster.autoscales
            replica.load.leaving = in_the_way or (idle and rows_wait <= 0)

    def _is_in_the_way(self, models: Sequence[Model], now: float) -> bool:
        """Return whether some model has waited for long for CPUs: where it waits for GPUs, those are free."""
        waiting = [one for one in models if any(now - arrival.asked_at > _SHARE_S for arrival in one.waiting)]
        return any(not one.share.num_gpus or self._cluster.room(Share(0, one.share.num_gpus, 0)) > 0 for one in waiting)

    def _share(self, models: Sequence[Model], now: float) -> None:
        """Let a model give back a replica for one that waits for room."""
        if len(models) < 2 or now - self._gave_at < _SHARE_S:
            return
        by_key = {model.spec.key: model for model in models}
        key = giver([_claim(model, now) for model in models], _SHARE_S)
        if key is None:
            return
        self._gave_at = now
        model = by_key[key]
        model.grow_at = now + _GIVEN_S
        chosen = min(model.staying.values(), key=lambda replica: (replica.load.calls, replica.load.rows))
        chosen.load.leaving = True


def _claim(model: Model, now: float) -> Claim:
    demand, rate = model.demand(now), model.rate or 1.0
    rows = demand.rows if demand.rows is not None else 256 * demand.calls
    waits = [now - arrival.asked_at for arrival in model.waiting]
    waits += [] if model.short_since is None else [now - model.short_since]
    return Claim(
        model.spec.key,
        len(model.staying),
        model.spec.placement.min_replicas,
        max(waits, default=0.0),
        rows / rate,
        kind="GPU" if model.share.num_gpus else "CPU",
        priority=model.callers.priority(now),
    )


def _ended(model: Model) -> list[Any]:
    """Return the actors of replicas that leave and have nothing to do any more."""
    gone = [number for number, replica in model.replicas.items() if replica.load.leaving and not replica.load.calls]
    model.note("left", len(gone))
    return [model.replicas.pop(number).handle for number in gone]
