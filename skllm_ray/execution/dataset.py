"""Texts to a Ray Dataset of blocks, blocks to the backend, rows back to the driver."""

from __future__ import annotations

import logging
import pickle
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError

from skllm_ray.config import Secret
from skllm_ray.errors import SkllmRayError
from skllm_ray.execution import ray_state
from skllm_ray.execution.assignment import CALLS_EACH, block_sizes
from skllm_ray.execution.block import BLOCK_ROWS, process, process_here
from skllm_ray.execution.cluster_status import outages_told
from skllm_ray.execution.model_pool import PooledBackend, connect, is_nested_without_room
from skllm_ray.execution.open_backends import opened
from skllm_ray.execution.placement import most_replicas
from skllm_ray.execution.plan import Block, Plan
from skllm_ray.execution.rate_limiter import end_call
from skllm_ray.execution.secrets import fetch_secrets, hand_over
from skllm_ray.execution.threads import MOST_THREADS, through_threads
from skllm_ray.execution.worker_check import compare_workers
from skllm_ray.execution.worker_feedback import News, tell, with_news
from skllm_ray.llm.api.capabilities import Lessons, known, teach
from skllm_ray.llm.base import WORKERS_AT_ONCE, Backend, is_stateful
from skllm_ray.llm.cancellation import Call
from skllm_ray.tasks.base import Reply, Row, RowError

_FLUSH_S = 5.0  # for a worker to write down what it has, before the process that waits for it ends
_LONGEST_REASON = 200
_TELL_S = 1.0
_NOTICE_S = 1.0  # for all workers to hear that a call is over


def on_cluster(
    block: Block, plan: Plan, secrets: Mapping[str, Secret], call: Call
) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    """Yield finished blocks, as they finish, of a call that uses Ray."""
    compare_workers(plan)
    stateful = [step.spec for step in plan if is_stateful(step.spec)]
    if stateful and ray_state.in_ray_worker() and any(map(is_nested_without_room, stateful)):
        yield from process_here(block, plan, secrets, call)
        return
    work = replace(Connected.connect(plan, secrets, len(block) if len(block) > BLOCK_ROWS else 0), call=call)
    everything = range(len(block))
    if work.pools[-1] is not None and len(block) <= BLOCK_ROWS:
        yield everything, work.process(block, secrets)
        return
    waiting = set(everything)
    asked = [step.spec.model for step in plan if not is_stateful(step.spec)]
    try:
        with outages_told(asked), work.demand(len(block)) as tell:
            for places, rows in _blocks(block, work):
                waiting.difference_update(places)
                tell(len(waiting), len(block) - len(waiting))
                yield places, rows
    except RayTaskError:  # a fault of ours in a task
        raise
    except (RayError, SystemException) as error:
        rest = sorted(waiting)
        yield rest, [_lost(error)] * len(rest)


def _blocks(block: Block, work: Connected) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    """Yield finished blocks, whoever hands them out."""
    if None not in work.pools and not ray_state.in_ray_worker() and work.in_flight <= MOST_THREADS:
        end = work.call.end if work.call is not None else lambda _: None
        return through_threads(len(block), work.in_flight, lambda places: work.process(block.take(places), {}), end)
    return _one_block(block, work) if len(block) <= BLOCK_ROWS else _through_dataset(block, work)


def _lost(error: Exception) -> Row[Any]:
    """Return the row of a text whose worker Ray has lost, so that those which are done are not lost with it."""
    cause = error.__cause__ or error
    reason = next(iter(str(cause).strip().splitlines()), "")
    message = f"Ray lost the work on this row ({type(cause).__name__}: {reason[:_LONGEST_REASON]})."
    return Row(None, False, Reply(error=RowError("cancelled", message, retryable=True), attempts=0))


@dataclass(frozen=True)
class Connected:
    """A plan and its backends, started: what every block of a call needs. It travels to each node once."""

    plan: Plan
    pools: tuple[PooledBackend | None, ...]
    """Each step's model actors; None for a backend that each worker opens for itself."""
    lessons: Lessons
    """What the servers are known to refuse, so that no worker has to find it out."""
    call: Call | None = None
    """The call that all blocks belong to; None where each stands alone."""
    caller: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names who tells the pools how much is left."""

    @classmethod
    def connect(cls, plan: Plan, secrets: Mapping[str, Secret], n_rows: int = 0, priority: int = 0) -> Connected:
        """Return the work with its models started, and the secrets where workers find them.

        Where the number of rows is known, the pools hear of it, and of its end from `demand`.
        """
        caller = uuid.uuid4().hex
        told = [0 if step.takes else n_rows for step in plan]
        pools = tuple(
            connect(step.spec, caller, rows, priority) if is_stateful(step.spec) else None
            for step, rows in zip(plan, told, strict=True)
        )
        if None in pools:
            hand_over(secrets)
        return cls(plan, pools, known(), caller=caller)

    @contextmanager
    def demand(self, n_rows: int) -> Iterator[Callable[[int, int], None]]:
        """Give a function that tells the models' pools how many rows are left and done, about once a second."""
        told_at = time.monotonic()

        def tell(left: int, done: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                self.tell(left, done)

        self.tell(n_rows, 0)
        try:
            yield tell
        finally:
            with suppress(Exception):  # Ray may have ended
                self.tell(0, n_rows)

    def tell(self, left: int, done: int) -> None:
        """Tell the models' pools how many rows are left, and how many are done."""
        for step, pool in zip(self.plan, self.pools, strict=True):
            if pool is not None:
                pool.tell(self.caller, left, done, partial=bool(step.takes))

    @property
    def in_flight(self) -> int:
        """Blocks or units at once: two for each replica that the last step's model may get.

        They wait where there are fewer: who hands out replicas gives two blocks to each. Of an API, as many as the
        cluster has CPUs, between 2 and 8, since each keeps many requests in flight. Ray ends workers above the number
        of CPUs after a second without work, and each takes seconds of a CPU to start.
        """
        pool = self.pools[-1]
        if pool is not None:
            asked = pool.spec.placement
            return CALLS_EACH * (max(pool.n_replicas, most_replicas(asked)) + asked.cpu_replicas)
        most = self.plan[-1].spec.capabilities.calls_at_once or WORKERS_AT_ONCE
        return min(most, max(2, int(ray.cluster_resources().get("CPU", 0))))

    @contextmanager
    def opened(self, secrets: Mapping[str, Secret] | None = None) -> Iterator[list[Backend]]:
        """Give the backends, open here, one for each step; on a worker, with the secrets that were handed over."""
        teach(self.lessons)
        if secrets is None:
            secrets = fetch_secrets() if None in self.pools else {}
        with ExitStack() as stack:
            yield [
                stack.enter_context(opened(step.spec, secrets)) if pool is None else pool
                for step, pool in zip(self.plan, self.pools, strict=True)
            ]

    def process(self, block: Block, secrets: Mapping[str, Secret] | None = None) -> list[Row[Any]]:
        """Process one block, here."""
        with self.opened(secrets) as backends:
            return process(block, self.plan, backends, self.call)


def _one_block(block: Block, work: Connected) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    """Process one block on a worker without a Dataset, which would take a hundred milliseconds to start and end."""
    answer = _process_remotely.remote(work, Block(list(block.texts), block.positions))
    try:
        rows, news = ray.get(answer)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, SkllmRayError) else error) from None
    except RayError:
        raise
    except BaseException:  # Ctrl-C or SIGTERM
        _end(work)
        ray.wait([answer], timeout=_FLUSH_S)
        ray.cancel(answer)
        raise
    tell(news, set())
    yield range(len(block)), rows


@ray.remote(num_cpus=0)
def _process_remotely(work: Connected, block: Block) -> tuple[list[Row[Any]], News]:
    return with_news(lambda: work.process(block))


def _through_dataset(block: Block, work: Connected) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    n_tasks, work = _shared_out(work)
    sizes = block_sizes(len(block), n_tasks)
    places = [range(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]
    tables = [_table(block, some) for some in places]
    with _quiet_data():
        dataset = ray.data.from_blocks(tables)  # from_arrow would ask a task, which waits for a CPU of the actors
        dataset.context.enable_progress_bars = False
        # Ray Data learns what the cluster has after a second only, and until then starts one task at a time. There is
        # nothing to hold back: the texts are in memory already, and the number of tasks is bounded.
        dataset.context.op_resource_reservation_enabled = False
        mapped = dataset.map_batches(
            _map_block_or_error,
            fn_kwargs={"work": work},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=min(n_tasks, len(tables))),
            zero_copy_batch=True,
        )
        told: set[str] = set()
        try:
            for batch in _raising(_blocks_of(mapped)):
                for places_done, packed in zip(batch["places"], batch["rows"], strict=True):
                    rows, news = pickle.loads(packed.as_py())  # noqa: S301 - written by our own task below
                    tell(news, told)
                    yield places_done.as_py(), rows
        except BaseException:  # Ctrl-C or SIGTERM, or what stops the call
            _end(work)
            time.sleep(_NOTICE_S)
            raise


def _table(block: Block, places: range) -> pa.Table:
    """Return some rows as a block of a Dataset."""
    some = block.take(places)
    return pa.table({"place": pa.array(places), "position": pa.array(some.positions), "text": some.texts})


def _end(work: Connected) -> None:
    """Let the workers send nothing more for a call that nobody waits for any more; what is in flight, they keep."""
    if work.call is not None:
        end_call(work.call.name, RowError("cancelled", "The call was interrupted.", fatal=True))


def _shared_out(work: Connected) -> tuple[int, Connected]:
    """Return how many blocks run at once, each with its part of the call's requests in flight."""
    call = work.call
    if call is None or call.max_in_flight is None:
        return work.in_flight, work
    n_tasks, most = parts_of(call.max_in_flight, work.in_flight)
    return n_tasks, replace(work, call=replace(call, max_in_flight=most))


def parts_of(amount: int, most_parts: int) -> tuple[int, int]:
    """Return the number and the size of equal parts that make up most of `amount`; of equals, the more parts.

    Examples
    --------
    >>> parts_of(32, 8), parts_of(10, 8), parts_of(1, 8)
    ((8, 4), (5, 2), (1, 1))
    """
    n_parts = max(range(1, min(amount, most_parts) + 1), key=lambda n: (amount // n * n, n))
    return n_parts, amount // n_parts


def _map_block(batch: pa.Table, work: Connected) -> pa.Table:
    """Process one block on a worker. The rows travel back as one value: they are Python objects, not columns."""
    block = Block(batch["text"].to_pylist(), batch["position"].to_pylist())
    rows = with_news(lambda: work.process(block))
    return pa.table(
        {
            "places": pa.array([batch["place"].to_pylist()], pa.list_(pa.int64())),
            "rows": pa.array([pickle.dumps(rows, protocol=5)], pa.large_binary()),
        }
    )


def _map_block_or_error(batch: pa.Table, work: Connected) -> pa.Table:
    """Process one block, or return what stops the call, without places: Ray Data would keep its text alone."""
    try:
        return _map_block(batch, work)
    except SkllmRayError as error:
        return pa.table(
            {
                "places": pa.array([[]], pa.list_(pa.int64())),
                "rows": pa.array([pickle.dumps(error)], pa.large_binary()),
            }
        )


def _blocks_of(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Yield the blocks of a Dataset, as they are done.

    ``iter_batches`` would leave a thread behind where it fetches nothing ahead. Where it does, it keeps a block that is
    done until the next one is: it would be lost with what Ray loses in the meantime.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        yield from map(ray.get, bundle.block_refs)


def _raising(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the finished blocks; raise what a worker returned in place of one."""
    for batch in batches:
        for places, error in zip(batch["places"], batch["rows"], strict=True):
            if not len(places):
                raise pickle.loads(error.as_py())  # noqa: S301 - written by our own task above
        yield batch


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Keep Ray Data's running commentary out of the user's terminal; its log files still get it."""
    handlers = [h for h in logging.getLogger("ray.data").handlers if not isinstance(h, logging.FileHandler)]
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.ERROR))
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)
