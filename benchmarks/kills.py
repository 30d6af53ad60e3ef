"""Kill anything at any time: a batch job on several nodes, its processes and nodes killed at random, and a tally.

    python -m benchmarks.kills --kills 50

Needs Linux, root and the ``ip`` command: every node is a real ``ray start`` in a network namespace with an address of
its own. The job classifies rows by dynamic few-shot: a GGUF model in actors embeds them, and an API on a local server,
which counts its requests, answers under a limit of requests per minute; every other job has a budget. ``kill -9``
strikes the driver, a worker, a model actor, the rate limiter, the job's ledger or a whole node; SIGTERM ends the driver
in order; and SIGSTOP, as a laptop's lid does, stops the driver with all its workers, the same command is run beside it,
and SIGCONT wakes them. Half of the jobs take the disk for a shared filesystem without locks, where the second run takes
over; on a local disk it is refused. The same command is run again until the job is complete, then the next job begins,
until enough kills are done. The tally tells, for all jobs
together: rows lost, rows twice in the output, requests that were paid for twice, and how many of those the promise
allows at each kill: the requests that the killed workers had in flight, as the server saw them, and a journal segment
for each of these workers. A worker is the one that is killed, those of a node that is lost, or all where the driver
dies; a model actor, the limiter and the ledger are none. Of the jobs with a budget it tells how often an output counts
less as spent than the server was paid.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from skllm_ray.batch.output.fence import LOCK_FILE
from skllm_ray.batch.output.holder import Holder
from skllm_ray.batch.output.journal import SEGMENT_REPLIES
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.testing import ChatServer

BRIDGE = "skrbr"
HOST = "10.77.0.1"
HEAD = "10.77.0.11"
NODES = ["skr1", "skr2", "skr3"]
WORKERS = 4
BUDGET_USD = 5.0
LATE_S = 0.1
ENDING_S = 2.0
RAYLET = str(Path(ray.__file__).parent / "core/src/ray/raylet/raylet")
SIGNALS = ["driver", "terminated driver", "stopped driver"]
TARGETS = {
    "worker": "ray::_run_units",
    "model actor": "ray::ModelActor",
    "rate limiter": "ray::_LimiterActor",
    "ledger": "ray::_Holder",
}
ALL_TARGETS = [*SIGNALS, "node", *TARGETS]
RAY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token in the home folder is asked for by the head, and not told by the others
}
DRIVER = """
import sys
import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import DynamicFewShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.vectorization import GPTVectorizer

source, output, url, address, budget, shared = sys.argv[1:]


def take_disks_for_shared():
    from skllm_ray.batch.output import fence, holder, lock

    lock.is_on_local_disk = fence.is_on_local_disk = lambda path: False
    lock.OutputLock._lock_here = lambda self: None
    holder.Holder.is_of_this_machine = property(lambda self: False)


options = {}
if shared:
    take_disks_for_shared()
    options = dict(runtime_env=dict(worker_process_setup_hook=take_disks_for_shared))
SKLLMConfig.set_gpt_url(url)
SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=6000)
SKLLMConfig.set_gguf_resources(num_cpus=1, max_replicas=2)
skllm_ray.init(address, **options)
clf = DynamicFewShotGPTClassifier(
    model="custom_url::m", vectorizer=GPTVectorizer(model="gguf::demo"), n_examples=1, on_error="coerce"
).fit(["a fine thing", "an awful thing"], ["good", "bad"])
paid = dict(budget_usd=float(budget), input_price=1.0, output_price=1.0, max_output_tokens=20) if budget else {}
result = batch.run(clf, source, output, unit_rows=200, workers=WORKERS, screen=batch.LineScreen(print, 2), **paid)
print(result, flush=True)
sys.exit(0 if result.complete else 3)
""".replace("WORKERS", str(WORKERS))


@dataclass
class Tally:
    """What happened in all jobs."""

    jobs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    failed: int = 0
    paid_twice: int = 0
    allowed: int = 0
    runs: int = 0
    with_budget: int = 0
    counted_too_little: int = 0
    over_budget: int = 0
    refused_beside_a_stopped_run: int = 0
    found_complete: int = 0
    """Runs that were begun beside a stopped one when all was done already."""
    taken_over: int = 0
    disorderly: int = 0
    """Runs that were told to end and did not do so in order, or that woke up overtaken and went on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=1e6, help="After so many nothing more is killed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=ALL_TARGETS, nargs="+", default=ALL_TARGETS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="k"))
    cluster = Cluster(folder)
    try:
        ends = time.monotonic() + 60 * given.minutes
        chance = Chance(given.seed, given.only)
        tally = strike(cluster, folder, given.kills, given.rows, chance, ends)
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
    found = {**vars(tally), "kills": dict(tally.kills)}
    width = max(map(len, found))
    print("\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in found.items()))  # noqa: T201
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    broken = tally.lost or tally.doubled or tally.counted_too_little or tally.over_budget or tally.disorderly
    if broken or tally.paid_twice > tally.allowed:
        sys.exit("The promise was broken.")


def strike(cluster: Cluster, folder: Path, n_kills: int, n_rows: int, chance: Chance, ends: float) -> Tally:
    """Run jobs and kill until enough is killed and the last job is complete."""
    tally = Tally()
    while sum(tally.kills.values()) < n_kills and time.monotonic() < ends:
        tally.jobs += 1
        budget_usd = BUDGET_USD if tally.jobs % 2 else None
        job = Job(folder / f"job{tally.jobs}", n_rows, budget_usd, shared=tally.jobs % 4 in {2, 3})
        with WatchedServer(job.answer) as server:
            while not job.complete:
                tally.runs += 1
                driver = job.start(cluster, server.url)
                while driver.poll() is None:
                    job.wait_until_flowing(driver)
                    time.sleep(chance.uniform(0, 4))
                    over = sum(tally.kills.values()) >= n_kills or time.monotonic() > ends
                    if driver.poll() is not None or over:
                        break
                    target = chance.choice(chance.targets)
                    if target == "stopped driver":
                        driver, struck = overtake(cluster, job, driver, server, tally)
                    else:
                        struck = cluster.kill(target, driver, chance, server)
                    if struck is not None:
                        workers, in_flight = struck
                        tally.kills[target] += 1
                        tally.allowed += in_flight + SEGMENT_REPLIES * workers
                        n = sum(tally.kills.values())
                        log(f"kill {n}: {target}, {workers} workers with {in_flight} requests in flight")
                job.complete = driver.wait() == 0
                if driver.terminated and driver.returncode not in {0, 128 + signal.SIGTERM}:
                    tally.disorderly += 1
                log(f"job {tally.jobs}: the driver ended with {driver.returncode}")
                cluster.mend()
        job.check(tally)
    return tally


def overtake(
    cluster: Cluster, job: Job, driver: Driver, server: WatchedServer, tally: Tally
) -> tuple[Driver, tuple[int, int]]:
    """Stop a run, run the same command beside it, wake the first; return the run that goes on, and what was struck."""
    workers = cluster.pids(TARGETS["worker"])
    pids = [driver.pid, *workers]
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    in_flight = len(server.in_flight())
    second = job.start(cluster, server.url, "second.log")
    tally.runs += 1
    deadline = time.monotonic() + 180
    before = job.token
    while time.monotonic() < deadline and second.poll() is None and job.token == before:
        time.sleep(0.2)
    taken = second.poll() is None and job.token != before
    if taken:
        job.wait_until_flowing(second)
    for pid in pids:
        _send(pid, signal.SIGCONT)
    if not taken:
        _judge_refused(job, second, tally)
        return driver, (0, 0)
    tally.taken_over += 1
    with suppress(subprocess.TimeoutExpired):
        driver.wait(60)
    if driver.poll() is None or driver.returncode == 0:
        tally.disorderly += 1
        log(f"the overtaken run went on, or ended with {driver.returncode}")
        _send(driver.pid, signal.SIGKILL)
    return second, (len(workers), in_flight)


def _judge_refused(job: Job, second: Driver, tally: Tally) -> None:
    """Say how a second run ended that did not take over, and whether it should have."""
    if second.poll() is None:
        second.kill()
        second.wait()
    if second.returncode == 0:
        tally.found_complete += 1
        return
    told = (job.folder / "second.log").read_text("utf-8", "replace").splitlines()
    if not job.shared and any("Another run writes to this output" in line for line in told):
        tally.refused_beside_a_stopped_run += 1
        return
    tally.disorderly += 1  # on a shared filesystem, it should have taken over
    log(f"the second run did not take over; it ended with {second.returncode}: {' | '.join(told[-12:])}")


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Chance(random.Random):
    """Chooses what is struck, and when."""

    def __init__(self, seed: int, targets: list[str]) -> None:
        super().__init__(seed)
        self.targets = targets


class Driver(subprocess.Popen[bytes]):
    """A run, and whether it was told to end."""

    terminated = False


class WatchedServer(ChatServer):
    """A server that knows whose requests are in flight: a connection carries one at a time."""

    def __init__(self, answer: Any) -> None:
        super().__init__(answer, host=HOST, latency_s=0.2)
        busy: dict[tuple[str, int], int] = {}
        ended: deque[tuple[float, tuple[str, int]]] = deque(maxlen=1000)
        self._busy, self._ended = busy, ended

        class Handler(self._http.RequestHandlerClass):  # type: ignore[name-defined,misc]
            def do_POST(self) -> None:  # noqa: N802  http.server's name
                busy[self.client_address] = 1
                try:
                    super().do_POST()
                finally:
                    busy.pop(self.client_address, None)
                    ended.append((time.monotonic(), self.client_address))

        self._http.RequestHandlerClass = Handler

    def in_flight(self) -> list[tuple[str, int]]:
        """Return the addresses of who waits for an answer, or got one too late to have read it."""
        since = time.monotonic() - LATE_S
        return [*list(self._busy), *(peer for at, peer in list(self._ended) if at > since)]

    def most_in_flight_for(self, seconds: float) -> int:
        """Return the most requests that are in flight at any moment of the next `seconds`."""
        most, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            most = max(most, len(self.in_flight()))
            time.sleep(0.02)
        return most


class Job:
    """One input, one output, and what the server saw of it."""

    def __init__(self, folder: Path, n_rows: int, budget_usd: float | None, *, shared: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self.complete = False
        self.budget_usd = budget_usd
        self.shared = shared
        self._lock = threading.Lock()
        self._paid: Counter[str] = Counter()
        texts = [f"a thing of number <{i}> that is {'fine' if i % 2 else 'awful'}" for i in range(n_rows)]
        pq.write_table(pa.table({"id": range(n_rows), "text": texts}), folder / "in.parquet", row_group_size=1000)
        self.n_rows = n_rows

    def answer(self, body: dict[str, Any]) -> str:
        """Answer, and count: what is answered is paid for."""
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self._paid[prompt.rpartition("<")[2].partition(">")[0]] += 1
        return '{"label": "good"}' if "fine" in prompt.rpartition("<")[2] else '{"label": "bad"}'

    def wait_until_flowing(self, driver: subprocess.Popen[bytes]) -> None:
        """Wait until some requests were answered since the last kill: the kills are to strike work, not start-up."""
        before, deadline = sum(self._paid.values()), time.monotonic() + 60
        while driver.poll() is None and time.monotonic() < deadline:
            if sum(self._paid.values()) > before + 20:
                return
            time.sleep(0.1)

    @property
    def token(self) -> str:
        """The run's that holds the output."""
        with suppress(OSError):
            return Holder.parse((self.folder / "out" / SYSTEM / LOCK_FILE).read_bytes()).token
        return ""

    def start(self, cluster: Cluster, url: str, log_name: str = "driver.log") -> Driver:
        """Run the same command, as ever."""
        script = self.folder / "driver.py"
        script.write_text(DRIVER)
        command = [sys.executable, str(script), str(self.folder / "in.parquet"), str(self.folder / "out"), url]
        output = (self.folder / log_name).open("ab" if log_name == "driver.log" else "wb")
        command += [f"{HEAD}:6379", str(self.budget_usd or ""), "shared" * self.shared]
        return cluster.execute(NODES[0], command, stdout=output, stderr=output)

    def check(self, tally: Tally) -> None:
        """Add what became of the rows."""
        tables = [pq.read_table(part) for part in sorted((self.folder / "out").glob("part-*.parquet"))]
        table = pa.concat_tables(tables)
        ids = Counter(table.column("id").to_pylist())
        tally.rows += self.n_rows
        tally.lost += self.n_rows - len(ids)
        tally.doubled += sum(count - 1 for count in ids.values())
        tally.failed += table.num_rows - table.column("prediction").drop_null().length()
        tally.paid_twice += sum(count - 1 for count in self._paid.values())
        if len(self._paid) < self.n_rows:
            tally.lost += self.n_rows - len(self._paid)
        if self.budget_usd is not None:
            tally.with_budget += 1
            output = open_folder(str(self.folder / "out"), StorageOptions(), {})
            least = min(cost for cost in table.column("cost_usd").to_pylist() if cost)
            paid = least * sum(self._paid.values())
            tally.counted_too_little += OutputState(output, ()).spent_usd(None) < paid
            tally.over_budget += paid > self.budget_usd


class Cluster:
    """Nodes in network namespaces of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.close()
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(NODES, 11):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}n", "netns", name)
            _ip("link", "set", f"{name}h", "master", BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"{name}n")
            _ip("-n", name, "link", "set", f"{name}n", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        for name in NODES:
            self._start(name)
        deadline = time.monotonic() + 120
        while not all(self._pids(RAYLET, name) for name in NODES):
            if time.monotonic() > deadline:
                told = "\n".join((folder / f"{name}.log").read_text("utf-8", "replace")[-2000:] for name in NODES)
                raise RuntimeError(f"Not all nodes have started.\n{told}")
            time.sleep(0.5)

    def execute(self, node: str, command: list[str], **options: Any) -> Driver:
        """Start a command on a node, in a process group of its own."""
        environment = {**os.environ, **RAY, "PYTHONPATH": str(Path.cwd()), "RAY_TMPDIR": str(self._folder / node)}
        return Driver(["ip", "netns", "exec", node, *command], env=environment, start_new_session=True, **options)

    def kill(self, target: str, driver: Driver, chance: random.Random, server: WatchedServer) -> tuple[int, int] | None:
        """Kill at random; return how many workers that struck, and the requests they had in flight.

        None where there was nothing to kill.
        """
        if target == "terminated driver":
            driver.terminated = True
            driver.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(30)  # Kubernetes' grace
            return (0, 0) if driver.poll() is not None else (WORKERS, server.most_in_flight_for(ENDING_S))
        if target == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
            return WORKERS, server.most_in_flight_for(ENDING_S)  # its workers end with it, but not at once
        if target == "node":
            name = chance.choice(NODES[1:])
            if name not in self._nodes:
                return None
            workers = self._pids(TARGETS["worker"], name)
            self._stop(name)
            threading.Timer(8, self._start, (name,)).start()
            address = _address(name)
            return len(workers), sum(host == address for host, _ in server.in_flight())
        pids = [(name, pid) for name in NODES for pid in self._pids(TARGETS[target], name)]
        if not pids:
            return None
        name, pid = chance.choice(pids)
        if target != "worker":
            os.kill(pid, signal.SIGKILL)
            return 0, 0
        os.kill(pid, signal.SIGSTOP)  # it sends nothing more while its requests are counted
        own = _ports(pid)
        struck = 1, sum(host == _address(name) and port in own for host, port in server.in_flight())
        os.kill(pid, signal.SIGKILL)
        return struck

    def pids(self, title: str) -> list[int]:
        """Return the processes of all nodes whose titles begin so."""
        return [pid for name in NODES for pid in self._pids(title, name)]

    def mend(self) -> None:
        """Have all nodes up."""
        deadline = time.monotonic() + 30
        while len(self._nodes) < len(NODES) and time.monotonic() < deadline:
            time.sleep(0.5)

    def close(self) -> None:
        """Stop all nodes, and remove what was made."""
        for name in NODES:
            self._stop(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)

    def _start(self, name: str) -> None:
        (self._folder / name).mkdir(exist_ok=True)
        address = _address(name)
        start = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
        options = [f"--node-ip-address={address}", "--num-cpus=2", "--object-store-memory=100000000"]
        if name == NODES[0]:
            options += ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._folder / name}"]
        else:
            options += [f"--address={HEAD}:6379"]
        output = (self._folder / f"{name}.log").open("ab")
        self._nodes[name] = self.execute(name, [*start, *options], stdout=output, stderr=output)
        time.sleep(6 if name == NODES[0] else 0)

    def _stop(self, name: str) -> None:
        for pid in self._pids("", name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._nodes.pop(name, None)

    def _pids(self, title: str, name: str) -> list[int]:
        """Return the processes of a node whose titles begin so."""
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        return [pid for pid in map(int, found.stdout.split()) if _title(pid).startswith(title)]


def _address(name: str) -> str:
    return f"10.77.0.{11 + NODES.index(name)}"


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except (psutil.Error, OSError):
        return ""


def _ports(pid: int) -> set[int]:
    """Return the local ports of a process's TCP connections, in its own network namespace."""
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if f"socket:[{line[9]}]" in held}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
