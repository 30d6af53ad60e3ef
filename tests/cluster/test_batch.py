"""Batch jobs on a real Ray: model actors, a real S3 protocol, metrics, and jobs submitted to a cluster's job server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.metrics import METRICS
from skllm_ray.execution.plan import Step
from skllm_ray.execution.unit_runner import UnitRunner
from skllm_ray.execution.unit_tasks import Died
from skllm_ray.tasks.classification import ZeroShotTask
from skllm_ray.testing import ChatServer, FakeSpec
from tests.batch.worlds import LABELS, api_classifier, read, texts, write
from tests.cluster.scripts import environment

pytestmark = pytest.mark.cluster
SECRET = "s3-secret-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    SKLLMConfig.reset()


def test_model_actors_answer_and_the_output_is_that_of_predict(ray_here, tmp_path):
    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    rows = [f"I love it, number {i}" if i % 2 else f"It broke, number {i}" for i in range(300)]
    result = batch.run(clf, write(tmp_path / "in.parquet", rows), str(tmp_path / "out"))
    assert result.complete
    found = read(tmp_path / "out")
    assert found["prediction"].tolist() == clf.predict(rows).tolist()
    assert (found["probability"] > 0.5).all()
    assert set(found["cost_usd"]) == {0.0}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("how", "twice"), [(signal.SIGKILL, 8 + 64), pytest.param(signal.SIGTERM, 8, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_killed_loses_nothing_and_pays_for_little(ray_here, tmp_path, how, twice):
    rows = texts(600)
    killed: list[int] = []
    gone = threading.Event()

    def answer(body: dict) -> str:
        if server.n_requests > 200:
            gone.wait(60)
        return '{"label": "good"}'

    with ChatServer(answer, latency_s=0.05) as server:
        SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=8)
        clf = api_classifier(server)

        class Killer(batch.LineScreen):
            def show(self, state) -> None:
                if not killed and server.n_requests > 200:
                    killed.extend(kill_one("ray::_run_units", how))
                    gone.set()

        source = write(tmp_path / "in.parquet", rows)
        result = batch.run(clf, source, str(tmp_path / "out"), unit_rows=150, screen=Killer(str))
        assert killed
        assert result.complete
        assert read(tmp_path / "out")["id"].tolist() == list(range(600))
        assert server.n_requests <= 600 + twice


@pytest.mark.deep
def test_a_unit_that_kills_its_worker_costs_its_neighbours_nothing(ray_here):
    runner = UnitRunner(_poisoned, (Step(ZeroShotTask(("a", "b")), FakeSpec(str)),), {}, 2)
    shared = runner.share(_nothing)
    results = dict(one for one in runner.run(deque(map(Unit, range(30))), shared, lambda unit: unit) if one is not None)
    assert [unit.key for unit, result in results.items() if result != unit] == [POISON]
    assert isinstance(results[Unit(POISON)], Died)


POISON = 20


@dataclass(frozen=True)
class Unit:
    key: int


def _poisoned(unit: Unit, *given: object) -> Unit:
    """End the process at one unit; the others take no time, so that many of them share a task."""
    if unit.key == POISON:
        os._exit(1)
    return unit


def _nothing(secrets: object) -> Counter[str]:
    return Counter()


@pytest.mark.deep
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_in_order_and_what_was_in_flight_is_kept(ray_here, tmp_path, how, code):
    source = write(tmp_path / "in.parquet", texts(600))
    with ChatServer(latency_s=0.1) as server:
        where = ["--input", source, "--output", str(tmp_path / "out"), "--labels", "good,bad", "--unit-rows", "150"]
        flags = [*where, "--model", "custom_url::m", "--gpt-url", server.url, "--max-concurrency", "8"]
        flags += ["--address", ray.get_runtime_context().gcs_address]
        command = [sys.executable, "-m", "skllm_ray.cli", "run", "classify", *flags]
        driver = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while server.n_requests < 60 and driver.poll() is None:
            time.sleep(0.05)
        driver.send_signal(how)
        out, err = driver.communicate(timeout=120)
        assert driver.returncode == code, err
        assert f"interrupted by {how.name}" in re.sub(r"\s+", " ", out)
        assert "the same command goes on" in err
        assert "Traceback" not in err
        before = server.n_requests
        assert before < 600  # a busy machine hands the signal over late
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert server.n_requests == 600  # none was lost, none paid twice
    assert read(tmp_path / "out")["id"].tolist() == list(range(600))


def kill_one(title: str, how: int = signal.SIGKILL) -> list[int]:
    """Kill one of this test's own processes that are called so; return its number."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                os.kill(process.pid, how)
                return [process.pid]
    return []


@pytest.mark.deep
def test_the_ledger_is_made_anew_when_its_process_dies_and_the_budget_holds(ray_here, tmp_path):
    prices = {"input_price": 1000.0, "output_price": 1000.0, "max_output_tokens": 10}
    with ChatServer(latency_s=0.1) as server:
        SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=8)
        clf = api_classifier(server)
        killed: list[int] = []

        class Killer(batch.LineScreen):
            def show(self, state) -> None:
                if len(killed) < 2 and server.n_requests > 100 * (1 + len(killed)):
                    killed.extend(kill_one("ray::_Holder"))

        source = write(tmp_path / "in.parquet", texts(600))
        where = (source, str(tmp_path / "out"))
        result = batch.run(clf, *where, unit_rows=100, budget_usd=1000, screen=Killer(str), **prices)
        assert len(killed) == 2
        assert (result.complete, result.stopped, result.unreadable) == (True, "", {})
        assert read(tmp_path / "out")["id"].tolist() == list(range(600))
        assert server.n_requests == 600  # nobody who asked had to die with it
        cost = result.total.cost_usd
        assert result.unknown_usd == 0.0
        assert result.total.rows == 600
        assert 400 < result.this_run.rows <= 600  # those that its ledgers lived to count
        killed.clear()
        where = (source, str(tmp_path / "half"))
        half = batch.run(clf, *where, unit_rows=100, budget_usd=cost / 2, screen=Killer(str), **prices)
        assert len(killed) == 2
        assert half.out_of_budget
        assert half.total.cost_usd + half.unknown_usd <= cost / 2
        assert (server.n_requests - 600) * cost / 600 <= cost / 2


@pytest.mark.deep
def test_waiting_for_quota_and_replicas_are_told_while_a_job_runs(ray_here, tmp_path):
    lines: list[str] = []
    with ChatServer() as server:
        SKLLMConfig.set_rate_limit("custom_url::slow", requests_per_minute=600)
        clf = api_classifier(server, "slow")
        screen = batch.LineScreen(lines.append, 0.2)
        source = write(tmp_path / "in.parquet", texts(120))  # 12 s, in which a busy machine shows it, too
        assert batch.run(clf, source, str(tmp_path / "out"), screen=screen).complete
    assert any(re.search(r"keeping to the pace of 600 requests/min; \d+ waiting", line) for line in lines)
    local = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    screen = batch.LineScreen(lines.append, 0.0)
    batch.run(local, write(tmp_path / "in.parquet", texts(600)), str(tmp_path / "local"), unit_rows=100, screen=screen)
    assert any(re.search(r"replicas: \d of gguf::demo on 1 node\b", line) for line in lines)


@pytest.mark.deep
def test_s3_holds_input_and_output_and_its_key_is_told_to_nobody(ray_here, s3_server, tmp_path):
    import pyarrow.fs as pafs

    options = {
        "endpoint_override": s3_server,
        "scheme": "http",
        "region": "us-east-1",
        "access_key": "key",
        "secret_key": SECRET,
        "allow_bucket_creation": True,
    }
    s3 = pafs.S3FileSystem(**options)
    s3.create_dir("bucket")
    local = pq.read_table(write(tmp_path / "in.parquet", texts(300)))
    for name in ("in/a.parquet", "in/deep/b.parquet", "in/_hidden.parquet"):
        pq.write_table(local, f"bucket/{name}", filesystem=s3)
    with ChatServer() as chat:
        clf = api_classifier(chat)
        where = ("s3://bucket/in/**/*.parquet", "s3://bucket/out")
        first = batch.run(clf, *where, storage_options=options, limit=350, unit_rows=100)
        assert (first.complete, first.rows_done) == (True, 350)
        whole = batch.run(clf, *where, storage_options=options, unit_rows=100)
        assert (whole.complete, whole.rows_done, whole.this_run.rows) == (True, 600, 250)
    parts = [name for name in s3.get_file_info(pafs.FileSelector("bucket/out")) if "part-" in name.path]
    assert sum(pq.read_metadata(part.path, filesystem=s3).num_rows for part in parts) == 600
    logs = [path for path in Path(os.environ["RAY_TMPDIR"]).rglob("*") if path.is_file() and not path.is_socket()]
    assert [path for path in logs if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.deep
def test_every_metric_is_served(ray_here, tmp_path):
    rows = [*texts(300), *texts(40), "POISON", None]
    with ChatServer(lambda body: "nonsense" if "POISON" in str(body) else '{"label": "good"}') as server:
        SKLLMConfig.set_rate_limit("custom_url::metrics", requests_per_minute=60_000)
        source = write(tmp_path / "in.parquet", rows)
        batch.run(api_classifier(server, "metrics"), source, str(tmp_path / "out"), input_price=1.0, unit_rows=1000)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {f"ray_{name}" for name in METRICS} - {"ray_skllm_ray_audited"}  # of cascades alone
    served: dict[tuple[str, str], float] = {}  # a gauge is gone soon after a job, a counter may come late: keep both
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        time.sleep(1)
        text = urllib.request.urlopen(url).read().decode()
        for name, labels, value in re.findall(r"^(ray_skllm_ray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            served[name, labels] = float(value)
        found = {re.sub("_(total|bucket|count|sum)$", "", name) for name, _ in served}
        sums: Counter[str] = Counter()
        for (name, labels), value in served.items():
            if 'model="metrics"' in labels:
                outcome = re.search(r'(?:outcome|kind)="(\w+)"', labels)
                sums[f"{name}:{outcome[1] if outcome else ''}"] += value
        if found == wanted and sums["ray_skllm_ray_request_seconds_count:"] >= 301:
            break
    assert found == wanted
    assert sums["ray_skllm_ray_rows_total:ok"] == 301
    assert sums["ray_skllm_ray_rows_total:duplicate"] == 40
    assert sums["ray_skllm_ray_errors_total:missing_text"] == 1
    assert sums["ray_skllm_ray_request_seconds_count:"] == 301
    assert sums["ray_skllm_ray_cost_usd_total:"] == pytest.approx(
        sums["ray_skllm_ray_tokens_total:prompt"] / 1e6, rel=0.01
    )


@pytest.fixture(scope="module")
def job_server(_own_folder: None) -> Iterator[str]:
    """A cluster of one node with its dashboard, as `ray start --head` makes it."""
    skllm_ray.shutdown()
    program = str(Path(sys.executable).parent / "ray")
    folder = os.environ["RAY_TMPDIR"]
    command = [
        program,
        "start",
        "--head",
        "--port=6390",
        "--dashboard-port=8266",
        "--num-cpus=2",
        f"--temp-dir={folder}",
    ]
    address = "http://127.0.0.1:8266"
    with (Path(folder) / "start.log").open("wb") as log:
        cluster = subprocess.Popen(
            [*command, "--block", "--disable-usage-stats"],
            env=environment(RAY_AUTH_MODE="token"),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while job(address, "list").returncode and time.monotonic() < deadline:
        time.sleep(1)
    yield address
    for process in [*psutil.Process(cluster.pid).children(recursive=True), psutil.Process(cluster.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.wait()


def job(address: str, *command: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "ray")
    return subprocess.run(
        [program, "job", command[0], "--address", address, *command[1:]],
        env=environment(RAY_AUTH_MODE="token"),
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
def test_a_submitted_job_can_be_stopped_and_resumed_and_its_log_is_readable(job_server, tmp_path):
    source = write(tmp_path / "in.parquet", texts(800))
    cli = str(Path(sys.executable).parent / "skllm-ray")
    with ChatServer(latency_s=0.1, key="sk-job-key-nobody-may-see") as server:
        key = tmp_path / "key"
        key.write_text("sk-job-key-nobody-may-see")
        run = [
            cli,
            "run",
            "classify",
            "--input",
            source,
            "--output",
            str(tmp_path / "out"),
            "--labels",
            ",".join(LABELS),
        ]
        run += ["--model", "custom_url::m", "--gpt-url", server.url, "--max-concurrency", "10", "--unit-rows", "100"]
        wrapped = ["env", f"SKLLM_CONFIG_OPENAI_KEY_FILE={key}", *run]
        submit = ("submit", "--submission-id", "first", "--no-wait", "--", *wrapped)
        deadline = time.monotonic() + 60
        while (started := job(job_server, *submit)).returncode and "No available agent" in started.stderr:
            assert time.monotonic() < deadline  # the node's agent starts later than the job server
            time.sleep(1)
        assert started.returncode == 0, started.stderr
        deadline = time.monotonic() + 60
        while server.n_requests < 250 and time.monotonic() < deadline:
            time.sleep(0.1)
        stopped = job(job_server, "stop", "first")
        assert stopped.returncode == 0, stopped.stderr
        before = server.n_requests
        assert 250 <= before < 800
        again = job(job_server, "submit", "--submission-id", "second", "--", *wrapped)
        assert again.returncode == 0, again.stdout + again.stderr
        assert read(tmp_path / "out")["id"].tolist() == list(range(800))
        assert server.n_requests <= 800 + 2 * (10 + 64)
        log = job(job_server, "logs", "second").stdout
        assert "800 of 800 rows (100.0%)" in log
        assert "sk-job-key" not in log + again.stdout
        failing = job(job_server, "submit", "--submission-id", "third", "--", *wrapped[:-2], "--text-column", "nope")
        assert failing.returncode != 0
        assert "the input has no column 'nope'" in job(job_server, "logs", "third").stdout
    told = job(job_server, "list").stdout
    assert "first" in told
    assert "sk-job-key" not in told
