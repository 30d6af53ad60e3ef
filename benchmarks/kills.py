"""Kill anything at any time: a batch job on several nodes, its processes and nodes killed at random, and a tally.

    python -m benchmarks.kills --kills 50

Needs Linux, root and the ``ip`` command: every node is a real ``ray start`` in a network namespace with an address of
its own. The job classifies rows by dynamic few-shot: a GGUF model in actors embeds them, and an API on a local server,
which counts its requests, answers under a limit of requests per minute. ``kill -9`` strikes the driver, a worker, a
model actor, the rate limiter, the job's ledger or a whole node; the same command is run again until the job is
complete, then the next job begins, until enough kills are done. The tally tells, for all jobs together: rows lost, rows
twice in the output, requests that were paid for twice, and how many of those the promise allows: what was in flight at
each kill, and one journal segment for each worker.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.batch.journal import SEGMENT_REPLIES
from skllm_ray.testing import ChatServer

BRIDGE = "skrbr"
HOST = "10.77.0.1"
HEAD = "10.77.0.11"
NODES = ["skr1", "skr2", "skr3"]
WORKERS = 4
TARGETS = {
    "worker": "ray::_run_units",
    "model actor": "ray::ModelActor",
    "rate limiter": "ray::_LimiterActor",
    "ledger": "ray::_Holder",
}
RAY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}
DRIVER = """
import sys
import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import DynamicFewShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.vectorization import GPTVectorizer

source, output, url, address = sys.argv[1:]
SKLLMConfig.set_gpt_url(url)
SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=6000)
SKLLMConfig.set_gguf_resources(num_cpus=1, max_replicas=2)
skllm_ray.init(address)
clf = DynamicFewShotGPTClassifier(
    model="custom_url::m", vectorizer=GPTVectorizer(model="gguf::demo"), n_examples=1, on_error="coerce"
).fit(["a fine thing", "an awful thing"], ["good", "bad"])
result = batch.run(clf, source, output, unit_rows=200, workers=WORKERS, screen=batch.LineScreen(print, 2))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="k"))
    cluster = Cluster(folder)
    try:
        tally = strike(cluster, folder, given.kills, given.rows, random.Random(given.seed))
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
    found = {**vars(tally), "kills": dict(tally.kills)}
    width = max(map(len, found))
    print("\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in found.items()))  # noqa: T201
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    if tally.lost or tally.doubled or tally.paid_twice > tally.allowed:
        sys.exit("The promise was broken.")


def strike(cluster: Cluster, folder: Path, n_kills: int, n_rows: int, chance: random.Random) -> Tally:
    """Run jobs and kill until enough is killed and the last job is complete."""
    tally = Tally()
    while sum(tally.kills.values()) < n_kills:
        tally.jobs += 1
        job = Job(folder / f"job{tally.jobs}", n_rows)
        with ChatServer(job.answer, host=HOST, latency_s=0.2) as server:
            while not job.complete:
                tally.runs += 1
                driver = job.start(cluster, server.url)
                while driver.poll() is None:
                    job.wait_until_flowing(driver)
                    time.sleep(chance.uniform(0, 4))
                    if driver.poll() is not None or sum(tally.kills.values()) >= n_kills:
                        break
                    target = chance.choice(["driver", "node", *TARGETS])
                    job.note_in_flight()
                    if cluster.kill(target, driver, chance):
                        tally.kills[target] += 1
                        tally.allowed += job.in_flight_at_kill + SEGMENT_REPLIES * WORKERS
                        log(f"kill {sum(tally.kills.values())}: {target}, {job.in_flight_at_kill} in flight")
                job.complete = driver.wait() == 0
                log(f"job {tally.jobs}: the driver ended with {driver.returncode}")
                cluster.mend()
        job.check(tally)
    return tally


class Job:
    """One input, one output, and what the server saw of it."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.complete = False
        self.in_flight_at_kill = 0
        self._in_flight = 0
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

    def note_in_flight(self) -> None:
        """Take down how many requests the killed may have in flight: those of the last moment."""
        with self._lock:
            before = sum(self._paid.values())
        time.sleep(0.25)  # the server takes 0.2 s for each
        with self._lock:
            self.in_flight_at_kill = 2 * (sum(self._paid.values()) - before) + 16

    def start(self, cluster: Cluster, url: str) -> subprocess.Popen[bytes]:
        """Run the same command, as ever."""
        script = self.folder / "driver.py"
        script.write_text(DRIVER)
        command = [sys.executable, str(script), str(self.folder / "in.parquet"), str(self.folder / "out"), url]
        output = (self.folder / "driver.log").open("ab")
        return cluster.execute(NODES[0], [*command, f"{HEAD}:6379"], stdout=output, stderr=output)

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

    def execute(self, node: str, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a command on a node, in a process group of its own."""
        environment = {**os.environ, **RAY, "PYTHONPATH": str(Path.cwd()), "RAY_TMPDIR": str(self._folder / node)}
        return subprocess.Popen(
            ["ip", "netns", "exec", node, *command], env=environment, start_new_session=True, **options
        )

    def kill(self, target: str, driver: subprocess.Popen[bytes], chance: random.Random) -> bool:
        """Kill at random; return whether there was something to kill."""
        if target == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
            return True
        if target == "node":
            name = chance.choice(NODES[1:])
            if name not in self._nodes:
                return False
            self._stop(name)
            threading.Timer(8, self._start, (name,)).start()
            return True
        pids = [p.pid for p in psutil.process_iter() if _title(p).startswith(TARGETS[target])]
        if not pids:
            return False
        os.kill(chance.choice(pids), signal.SIGKILL)
        return True

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
        address = f"10.77.0.{11 + NODES.index(name)}"
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
        options = [f"--node-ip-address={address}", "--num-cpus=2", "--object-store-memory=100000000"]
        if name == NODES[0]:
            options += ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._folder / name}"]
        else:
            options += [f"--address={HEAD}:6379"]
        output = (self._folder / f"{name}.log").open("ab")
        self._nodes[name] = self.execute(name, [*ray, *options], stdout=output, stderr=output)
        time.sleep(6 if name == NODES[0] else 0)

    def _stop(self, name: str) -> None:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._nodes.pop(name, None)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
