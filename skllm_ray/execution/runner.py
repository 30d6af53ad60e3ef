"""The path of one call: decide where its blocks run, run them, return the rows in order.

::

    local mode, or an API backend with at most one block and no Ray    in this process        block.py
    a model, at most one block                                         driver → model actors  model_pool.py
    anything else                                                      Ray Dataset → …        dataset.py
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from skllm_ray.config import Secret
from skllm_ray.execution import ray_state, session
from skllm_ray.execution.block import BLOCK_ROWS, process_here
from skllm_ray.execution.inherited_secrets import inherited
from skllm_ray.execution.plan import Block, Plan
from skllm_ray.execution.progress import progress_bar
from skllm_ray.execution.termination import ends_on_sigterm
from skllm_ray.llm.base import is_stateful
from skllm_ray.llm.cancellation import Call
from skllm_ray.tasks.base import Row

Blocks = Generator[tuple[Sequence[int], list[Row[Any]]], None, None]
"""Finished blocks in any order: the rows' places among the texts, and the rows."""


def run(
    texts: Sequence[str],
    plan: Plan,
    secrets: Mapping[str, Secret] | None = None,
    *,
    positions: Sequence[int] | None = None,
    num_workers: int | None = None,
    keeps_requests: bool = False,
    show_progress: bool = True,
) -> list[Row[Any]]:
    """Return one row per text, in order.

    When a row fails for a reason that all rows share, what was not sent yet is cancelled, in all blocks; what is in
    flight is waited for and kept.

    Parameters
    ----------
    texts : sequence of str of length n_texts
        None of them missing.
    plan : tuple of Step
        What is asked of which models, one step after the other.
    secrets : mapping of str to Secret, optional
        Credentials by fingerprint, handed to workers that have none of their own.
    positions : sequence of int or None, default=None
        Where the texts stand in the user's input, by which rows are sampled; None counts the texts.
    num_workers : int or None, default=None
        The most requests of this call that an API backend may have in flight.
    keeps_requests : bool, default=False
        Whether the rows are to hold what was asked.
    show_progress : bool, default=True
        Whether a progress bar may appear.

    Raises
    ------
    SkllmRayError
        What stops every row: a model that cannot be loaded, no room for it, a Ray that cannot be used.
    """
    if not texts:
        return []
    secrets = inherited(secrets or {})
    call = Call(uuid.uuid4().hex, num_workers, keeps_requests=keeps_requests)
    block = Block(texts, range(len(texts)) if positions is None else positions)
    if runs_here(plan, len(texts)):
        blocks: Blocks = process_here(block, plan, secrets, call)
    else:
        session.ensure()
        from skllm_ray.execution.dataset import on_cluster

        blocks = on_cluster(block, plan, secrets, call)
    rows: list[Row[Any] | None] = [None] * len(texts)
    bar: Any = progress_bar(len(texts), plan[-1].spec.model, show=show_progress)
    with ends_on_sigterm(), bar, closing(blocks):
        for places, finished in blocks:
            for place, row in zip(places, finished, strict=True):
                rows[place] = row
            bar.update(len(finished))
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise RuntimeError(f"{len(rows) - len(found)} of {len(rows)} rows came from no block; please report this.")
    return found


def runs_here(plan: Plan, n_texts: int) -> bool:
    """Return whether a call of `n_texts` rows needs no Ray."""
    if ray_state.is_local_mode():
        return True
    heavy = any(is_stateful(step.spec) for step in plan)
    return not heavy and n_texts <= BLOCK_ROWS and not ray_state.is_initialised()
