"""The path of one call: decide where its blocks run, run them, return the rows in order.

::

    local mode, or an API backend with at most one block and no Ray    in this process        block.py
    a model, at most one block                                         driver → model actors  model_pool.py
    anything else                                                      Ray Dataset → …        dataset.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from skllm_ray.execution import session
from skllm_ray.execution.block import BLOCK_ROWS, open_here, process
from skllm_ray.execution.progress import progress_bar
from skllm_ray.llm.base import BackendSpec
from skllm_ray.tasks.base import Row, Task

Blocks = Iterable[tuple[Sequence[int], list[Row[Any]]]]
"""Finished blocks in any order: the rows' positions, and the rows."""


def run(
    texts: Sequence[str],
    task: Task[Any],
    spec: BackendSpec,
    secrets: Mapping[str, str] | None = None,
    *,
    show_progress: bool = True,
) -> list[Row[Any]]:
    """Return one row per text, in order.

    Parameters
    ----------
    texts : sequence of str of length n_texts
        None of them missing.
    task : Task
        How texts become requests and replies become results.
    spec : BackendSpec
        Which model answers.
    secrets : mapping of str to str, optional
        Credentials by fingerprint, handed to workers that have none of their own.
    show_progress : bool, default=True
        Whether a progress bar may appear.

    Raises
    ------
    SkllmRayError
        What stops every row: a model that cannot be loaded, no room for it, a Ray that cannot be used.
    """
    if not texts:
        return []
    secrets = dict(secrets or {})
    if runs_here(spec, len(texts)):
        blocks: Blocks = _in_process(texts, task, spec, secrets)
    else:
        session.ensure()
        from skllm_ray.execution.dataset import on_cluster

        blocks = on_cluster(texts, task, spec, secrets)
    rows: list[Row[Any] | None] = [None] * len(texts)
    with progress_bar(len(texts), spec.model, show=show_progress) as bar:
        for positions, finished in blocks:
            for position, row in zip(positions, finished, strict=True):
                rows[position] = row
            bar.update(len(finished))
    missing = sum(row is None for row in rows)
    if missing:
        raise RuntimeError(f"{missing} of {len(rows)} rows came back from no block; please report this.")
    return rows  # type: ignore[return-value]


def runs_here(spec: BackendSpec, n_texts: int) -> bool:
    """Return whether a call of `n_texts` rows needs no Ray."""
    if session.is_local_mode():
        return True
    return not spec.placement.stateful and n_texts <= BLOCK_ROWS and not session.is_initialised()


def _in_process(
    texts: Sequence[str], task: Task[Any], spec: BackendSpec, secrets: Mapping[str, str]
) -> Iterator[tuple[range, list[Row[Any]]]]:
    backend = open_here(spec, secrets)
    for start in range(0, len(texts), BLOCK_ROWS):
        part = texts[start : start + BLOCK_ROWS]
        yield range(start, start + len(part)), process(part, task, backend)
