"""Provider batches and whatever dies: a table of what was bought, and of what became of every row.

    python -m benchmarks.batch_crashes [--ray] [--rows 60]

Each line is a world of its own: a local server of files and batches that keeps the bill, an input, and a job with a
budget, driven by processes that are killed with SIGKILL at a step of the delivery, whose connections drop before or
after the server took a batch, whose records cannot be read, or who are three at once. Then the same command is run
again, and once more where it said `AmbiguousSubmission` and a person settled that. With ``--ray`` there are further
worlds: drivers with a Ray of their own, which die with all its processes, and drivers in a cluster whose watcher goes
on when they die, dies too, or makes room for the next driver. The table tells, of each: batches that were bought,
requests that were charged twice, rows lost, rows twice in the output, and whether the server was paid more than the
job counts or its budget allows. The exit code is 1 if any of these is not as promised.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.delivery import deliver, order
from skllm_ray.batch.delivery.collect import Collector
from skllm_ray.batch.delivery.order import Orders
from skllm_ray.batch.job import watching
from skllm_ray.batch.output.fence import LOCK_FILE
from skllm_ray.batch.output.holder import Holder
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import AmbiguousSubmission, SkllmRayError
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.testing.batch_server import BatchFault, BatchServer, SubmitFault

BUDGET_USD = 0.2
PRICES = {"input_price": 1.0, "output_price": 2.0, "batch_price_share": 0.5}
PROCESSES = multiprocessing.get_context("forkserver")
DEATHS = {
    "killed before the intent": "drafted",
    "killed after the intent": "intent",
    "killed between intent and POST": "uploaded",
    "killed with the POST announced": "posting",
    "killed after the POST": "posted",
    "killed after the record": "recorded",
    "killed while collecting": "line",
    "killed when all was collected": "collected",
    "killed when that was noted": "noted",
}


@dataclass(frozen=True)
class Job:
    """What a driver needs to know."""

    url: str
    source: str
    output: str
    with_ray: bool = False
    address: str = ""
    dies_at: str = ""

    def run(self) -> str:
        """Run the job in this process; return "complete", the name of an error, or why it stopped."""
        hurry()
        for kind in (Orders, Collector):
            kind.on_step = staticmethod(self._step(Counter()))  # type: ignore[assignment,method-assign]
        SKLLMConfig.set_gpt_url(self.url)
        if self.address:
            skllm_ray.init(self.address, runtime_env={"worker_process_setup_hook": "benchmarks.batch_crashes.hurry"})
        else:
            skllm_ray.init(**({"num_cpus": 2} if self.with_ray else {"local_mode": True}))
        clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, ["bad", "good"])
        options: dict[str, Any] = {"budget_usd": BUDGET_USD, "max_output_tokens": 50, "unit_rows": 20, **PRICES}
        try:
            result = batch.run(clf, self.source, self.output, delivery="batch", **options)
        except SkllmRayError as error:
            return type(error).__name__
        finally:
            skllm_ray.shutdown()
        told = result.total.cost_usd + result.unknown_usd + result.set_aside_usd
        Path(f"{self.output}.counted").write_text(str(told))
        return "complete" if result.complete else result.stopped

    def _step(self, seen: Counter[str]) -> Callable[[str], None]:
        def step(reached: str) -> None:
            seen[reached] += 1
            if reached == self.dies_at and seen[reached] == (7 if reached == "line" else 1):
                os.kill(os.getpid(), signal.SIGKILL)

        return step


def hurry() -> None:
    """Look at batches often, and let a watcher begin soon."""
    deliver.POLLING = Polling(0.05, 1.0, 0.05, 0.0)  # type: ignore[misc]
    order.GRACE = GracePeriod(1.0, 0.1)  # type: ignore[misc]
    watching.PAUSES = Polling(0.5, 1.0, 0.5, 0.0)  # type: ignore[misc]


def drive(job: Job, told: str) -> None:
    """Be a driver: a process of its own."""
    Path(told).write_text(job.run())


class World:
    """A server, an input, and drivers."""

    def __init__(self, server: BatchServer, folder: Path, n_rows: int, *, with_ray: bool) -> None:
        self.server, self.folder, self.n_rows, self.with_ray = server, folder, n_rows, with_ray
        self.address = ""
        texts = [f"a {'good' if i % 3 else 'bad'} thing, number {i}" for i in range(n_rows)]
        pq.write_table(pa.table({"id": list(range(n_rows)), "text": texts}), folder / "in.parquet")

    @property
    def output(self) -> str:
        return str(self.folder / "out")

    def start(self, number: int = 0, dies_at: str = "") -> Any:
        job = Job(self.server.url, str(self.folder / "in.parquet"), self.output, self.with_ray, self.address, dies_at)
        process = PROCESSES.Process(target=drive, args=(job, str(self.folder / f"told-{number}")))
        process.start()
        return process

    def drive(self, number: int = 0, dies_at: str = "") -> str:
        """Let one driver run until it ends or dies."""
        process = self.start(number, dies_at)
        process.join(300)
        return self.told(number) if process.exitcode == 0 else f"exit code {process.exitcode}"

    def told(self, number: int) -> str:
        return (self.folder / f"told-{number}").read_text()

    def settle(self) -> list[str]:
        """Run the same command until it is complete; a person settles what nobody can know."""
        said: list[str] = []
        while not said or (
            said[-1] != "complete" and len(said) < 8
        ):  # a busy machine may need several calls to start a Ray
            said.append(self.drive())
            if said[-1] == AmbiguousSubmission.__name__:
                n_before = self.server.n_submissions
                said.append(self.drive())  # it stays so, and nothing is sent
                assert self.server.n_submissions == n_before
                for record in batch.list_batches(self.output):
                    if record.state == "posting":
                        batch.forget_batch(self.output, record.key)
        return said

    @property
    def rows_done(self) -> int:
        return sum(pq.read_metadata(part).num_rows for part in Path(self.output).glob("part-*"))

    def until(self, ready: Callable[[], object]) -> None:
        """Wait for something that a watcher does."""
        deadline = time.monotonic() + 600
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.1)

    @property
    def watcher(self) -> int:
        """The process of the watcher that holds the output; 0 where none does."""
        lock = Path(self.output) / "_skllm_ray" / LOCK_FILE
        holder = Holder.parse(lock.read_bytes() if lock.exists() else b"")
        return holder.pid if holder.watches else 0

    def row(self, what: str, said: list[str]) -> tuple[str, ...]:
        """Return a line of the table; its last cell is empty where all is as promised."""
        parts = [pq.read_table(part) for part in sorted(Path(self.output).glob("part-*"))]
        table = pa.concat_tables(parts) if parts else pa.table({"id": [], "prediction": []})
        ids = Counter(table["id"].to_pylist())
        right = ["good" if i % 3 else "bad" for i in sorted(ids)]
        wrong = sum(a != b for a, b in zip(right, table["prediction"].to_pylist(), strict=True))
        lost, twice = self.n_rows - len(ids), sum(n - 1 for n in ids.values())
        charged = sum(n - 1 for n in self.server.bill.charged.values())
        paid = self.server.bill.usd(1.0, 2.0)
        counted = float(Path(f"{self.output}.counted").read_text())
        faults = {
            "lost": lost, "twice": twice, "wrong": wrong, "charged twice": charged,
            "paid more than counted": paid > counted + 1e-9, "budget passed": counted > BUDGET_USD,
            "not complete": said[-1] != "complete",
        }  # fmt: skip
        broken = ", ".join(name for name, found in faults.items() if found)
        n_bought = str(len(self.server.batches))
        return what, " → ".join(said), n_bought, str(charged), str(lost), str(twice), f"{paid:.6f}", broken


@contextmanager
def world(n_rows: int, *, with_ray: bool) -> Iterator[World]:
    """Give a world of its own."""
    with tempfile.TemporaryDirectory() as folder, BatchServer() as server:
        yield World(server, Path(folder), n_rows, with_ray=with_ray)


def deaths(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Kill the driver at each step."""
    for what, step in DEATHS.items():
        with world(n_rows, with_ray=False) as here:
            died = here.drive(dies_at=step)
            yield here.row(what, [died, *here.settle()])


def drops(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Lose the answer to the POST."""
    for fault in SubmitFault:
        with world(n_rows, with_ray=False) as here:
            here.server.late_s = here.server.slow_s = 0.5
            here.server.submit_faults.append(fault)
            yield here.row(f"POST: {fault.value}", here.settle())


def stores(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Take the records away, or damage one."""
    for what in ("records away", "a record damaged"):
        with world(n_rows, with_ray=False) as here:
            said = [here.drive(dies_at="recorded")]
            records = Path(here.output) / "_skllm_ray" / "batches"
            last = max(records.rglob("*.json"))
            kept = last.read_bytes()
            if what == "records away":
                records.rename(here.folder / "away")
                said.append(here.drive())
                (here.folder / "away").rename(records)
            else:
                last.write_bytes(kept[:10])
                said.append(here.drive())
                last.write_bytes(kept)
            assert len(here.server.batches) == 1
            yield here.row(what, [*said, *here.settle()])


def races(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Start three drivers at once, twice: fresh, and while a batch is live."""
    for what in ("three drivers at once", "three drivers take up a live batch"):
        with world(n_rows, with_ray=False) as here:
            first = [] if what == "three drivers at once" else [here.drive(dies_at="recorded")]
            racers = [here.start(number) for number in range(3)]
            for racer in racers:
                racer.join(300)
            told = Counter(here.told(number) for number in range(3))
            said = " and ".join(f"{n} {name}" for name, n in sorted(told.items()))
            yield here.row(what, [*first, said, *here.settle()])


def clusters(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Kill a driver with its whole Ray while its batch is live, and while it collects."""
    for what, step in (("cluster killed, batch live", ""), ("cluster killed while collecting", "line")):
        with world(n_rows, with_ray=True) as here:
            here.server.batch_faults.append(None if step else BatchFault.STUCK)
            driver = here.start(dies_at=step)
            if not step:
                while not any(one.status == "in_progress" for one in here.server.batches.values()):
                    time.sleep(0.1)
                for one in here.server.batches.values():
                    one.fault = None
            processes = [] if step else [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(True)]
            for process in processes:
                process.kill()
            driver.join(300)
            yield here.row(what, [f"exit code {driver.exitcode}", *here.settle()])


def be_a_cluster(told: str) -> None:
    """Run a Ray until this process ends."""
    for _ in range(5):  # a busy machine may need several calls to start one
        with suppress(Exception):
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
    draft = Path(f"{told}.draft")
    draft.write_text(str(ray.get_runtime_context().gcs_address))
    draft.rename(told)
    threading.Event().wait()


@contextmanager
def cluster(here: World) -> Iterator[Callable[[], None]]:
    """Give a world a Ray that outlives its drivers; what is given kills it."""
    told = here.folder / f"cluster-{uuid.uuid4().hex}"
    head = PROCESSES.Process(target=be_a_cluster, args=(str(told),))
    head.start()
    here.until(told.exists)
    here.address = told.read_text()

    def kill() -> None:
        tree = [psutil.Process(head.pid), *psutil.Process(head.pid).children(True)] if head.is_alive() else []
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.join(60)

    try:
        yield kill
    finally:
        kill()


def watchers(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Kill a driver in a cluster, whose watcher then goes on."""
    for step in ("posted", "recorded", "line"):
        with world(n_rows, with_ray=True) as here, cluster(here):
            said = [here.drive(dies_at=step)]
            here.until(lambda here=here: here.rows_done == here.n_rows and not here.watcher)
            said.append(f"watcher: {here.rows_done} rows")
            n_asked = sum(here.server.bill.requests.values())
            said += here.settle()
            said += ["paid again"] if sum(here.server.bill.requests.values()) != n_asked else []
            yield here.row(f"driver killed ({step}), watcher goes on", said)


def returns(n_rows: int) -> Iterator[tuple[str, ...]]:
    """Kill the watcher at work too, or its cluster, or come back to it with one driver or two."""
    for what in ("watcher killed", "cluster killed", "a driver comes back", "two drivers come back"):
        with world(n_rows, with_ray=True) as here, cluster(here) as kill:
            here.server.batch_faults.append(BatchFault.STUCK)
            said = [here.drive(dies_at="recorded")]
            here.until(lambda here=here: here.watcher)
            racers = []
            if what == "watcher killed":
                os.kill(here.watcher, signal.SIGKILL)
            elif what == "cluster killed":
                kill()
                here.address = ""
            else:
                racers = [here.start(number) for number in range(1 + (what == "two drivers come back"))]
                here.until(lambda here=here: not here.watcher)
            for one in here.server.batches.values():
                one.fault = None
            for racer in racers:
                racer.join(300)
            if what == "watcher killed":
                here.until(lambda here=here: here.rows_done == here.n_rows and not here.watcher)
                said.append(f"watcher: {here.rows_done} rows")
            said += [here.told(number) for number in range(len(racers))]
            yield here.row(f"driver killed, watcher at work, {what}", [*said, *here.settle()])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--ray", action="store_true", help="Also the worlds with a Ray.")
    given = parser.parse_args()
    PROCESSES.set_forkserver_preload(["openai", "skllm_ray.batch", "skllm_ray.classification", "pandas"])
    heads = ("what happens", "drivers say", "batches", "charged twice", "lost", "twice", "paid, USD", "broken")
    print(" | ".join(heads))  # noqa: T201
    broken = 0
    with_ray = (clusters, watchers, returns) if given.ray else ()
    for worlds in (deaths, drops, stores, races, *with_ray):
        for row in worlds(given.rows):
            broken += bool(row[-1])
            print(" | ".join(row), flush=True)  # noqa: T201
    print(f"{broken} broken")  # noqa: T201
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
