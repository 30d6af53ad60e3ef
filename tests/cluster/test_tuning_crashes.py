"""The crash matrix: whatever dies, there is never more than one job, and always its ID or `AmbiguousSubmission`."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

import skllm_ray
from skllm_ray.errors import AmbiguousSubmission
from skllm_ray.llm.submissions import submit
from skllm_ray.llm.tuning import TuningJob
from skllm_ray.llm.tuning.store import open_store
from skllm_ray.testing.tuning_server import SubmitFault, TuningServer
from tests.cluster.scripts import run_script, start_script
from tests.tuning_worlds import (
    LABELS,
    QUICK,
    TEXTS,
    google_environment,
    job_of,
    service_of,
    submit_and_die,
    submit_and_tell,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

AGES = multiprocessing.get_context("forkserver")
AGES.set_forkserver_preload(["google.genai", "google.cloud.storage", "openai", "skllm_ray.llm.tuning_services"])

DEATHS = {
    "dies before the intent": ("start", 0),
    "dies after the intent": ("intent", 0),
    "dies between intent and POST": ("uploaded", 0),
    "dies with the POST announced": ("posting", 0),
    "dies after the POST": ("posted", 1),
    "dies after the record": ("recorded", 1),
}
"""What happens, the step at which, and how many jobs there are then."""
DROPS = {
    "connection dropped before acceptance": (SubmitFault.DROP_BEFORE, 0),
    "connection dropped after acceptance": (SubmitFault.DROP_AFTER, 1),
    "503 before acceptance": (SubmitFault.ERROR_BEFORE, 0),
    "503 after acceptance": (SubmitFault.ERROR_AFTER, 1),
    "web page after acceptance": (SubmitFault.HTML_AFTER, 1),
    "accepted, dropped, listed late": (SubmitFault.LATE, 1),
}


class World:
    """One server, one store, one job."""

    def __init__(self, service: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.service, self.folder = service, folder
        self.server = TuningServer()
        self.server.late_s = 0.4
        self.environment = google_environment(self.server, folder)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self.store_url = "gs://bucket/jobs" if service == "vertex" else str(folder / "store")
        self.spec, self.data = job_of(service, self.server)

    def kill_at(self, step: str, how: str) -> None:
        arguments = (self.service, self.server.root, self.store_url, step, how, self.environment)
        victim = AGES.Process(target=submit_and_die, args=arguments)
        victim.start()
        victim.join(120)
        assert victim.exitcode == (9 if how == "os._exit" else -signal.SIGKILL)

    def race(self, n_drivers: int) -> set[str]:
        told = [self.folder / f"told-{number}" for number in range(n_drivers)]
        racers = [
            AGES.Process(
                target=submit_and_tell,
                args=(self.service, self.server.root, self.store_url, self.environment, str(path)),
            )
            for path in told
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(120)
        return {path.read_text() for path in told}

    def lose_store(self) -> None:
        if self.service == "vertex":
            for name in [name for name in self.server.objects if "/jobs/" in name]:
                del self.server.objects[name]
        else:
            shutil.rmtree(self.store_url)

    def again(self) -> str:
        """Submit once more, as a new driver does; return the ID, or the name of the error."""
        try:
            job = submit(
                TuningJob(spec=self.spec), self.data, open_store(self.store_url), service_of(self.spec), patience=QUICK
            )
        except AmbiguousSubmission as error:
            assert error.key == self.spec.key
            return "AmbiguousSubmission"
        assert job.id is not None
        return job.id.rpartition("/")[2]


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    opened: list[World] = []

    def make(service: str) -> World:
        world = World(service, tmp_path / f"world-{len(opened)}", monkeypatch)
        world.server.__enter__()
        opened.append(world)
        return world

    yield make
    for world in opened:
        world.server.__exit__()


@pytest.mark.slow
def test_the_crash_matrix(worlds, capsys) -> None:
    rows: list[tuple[str, str, str, str, int]] = []

    def check(world: World, what: str, taken: int) -> None:
        first, second = world.again(), world.again()
        assert first == second, f"{what}: {first}, then {second}"
        assert world.server.n_jobs <= 1, what
        if taken:  # what exists is found
            assert first == world.server.ids[0].rpartition("/")[2], what
        else:
            assert first == "AmbiguousSubmission" or world.server.n_jobs == 1, what
        rows.append((world.service, what, first, second, world.server.n_jobs))

    for service in ("vertex", "custom_url"):
        for what, (step, taken) in DEATHS.items():
            world = worlds(service)
            world.kill_at(step, "SIGKILL" if step in {"uploaded", "posted"} else "os._exit")
            assert world.server.n_jobs == taken
            check(world, what, taken)
            assert (rows[-1][2] == "AmbiguousSubmission") == (step == "posting")
        for what, (fault, taken) in DROPS.items():
            world = worlds(service)
            world.server.faults.append(fault)
            check(world, what, taken)
            assert world.server.n_submissions == 1
        world = worlds(service)
        known = world.again()
        world.lose_store()
        check(world, "store lost after the record", 1)
        assert rows[-1][2] == known
        world = worlds(service)
        world.kill_at("posted", "SIGKILL")
        world.lose_store()
        check(world, "store lost after the POST", 1)
        world = worlds(service)
        world.server.faults.append(SubmitFault.SLOW)
        told = world.race(3)
        check(world, "three drivers racing", 1)
        assert told == {world.server.ids[0]} and world.server.n_submissions == 1
    rows += cluster_rows(worlds)
    with capsys.disabled():
        lines = [("service", "what happens", "next driver", "the one after", "jobs"), *rows]
        sys.stdout.write("".join("\n{:11} {:38} {:20} {:20} {:>4}".format(*line) for line in lines) + "\n")


SUBMIT = f"""
import skllm_ray
from skllm_ray.classification import GPTClassifier
X, y = {TEXTS!r}, {LABELS!r}
clf = GPTClassifier("custom_url::gpt-4.1-mini", poll_s=0.3, grace_s=20)
"""


def cluster_rows(worlds) -> list[tuple[str, str, str, str, int]]:
    """Kill the driver, the watcher and the whole cluster, one after the other."""
    skllm_ray.shutdown()
    world: World = worlds("custom_url")
    world.server.states = ("PENDING", *["RUNNING"] * 25, "SUCCEEDED")
    world.server.slow_s = 3.0
    world.server.faults.append(SubmitFault.SLOW)
    rows = []
    settings = {
        **world.environment,
        "SKLLM_CONFIG_TUNING_STORE": world.store_url,
        "SKLLM_CONFIG_GPT_URL": world.server.url,
    }
    os.environ.update(settings)  # for the cluster's workers
    cluster = start_cluster()

    def submit_again() -> str:
        done = run_script(SUBMIT + "print(clf.submit_tuning(X, y).id)", RAY_ADDRESS=cluster.address, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    try:
        driver = start_script(
            SUBMIT + 'print("ready", flush=True)\nclf.submit_tuning(X, y)', RAY_ADDRESS=cluster.address, **settings
        )
        until(lambda: world.server.n_jobs == 1)  # the job is taken, its answer on the way
        driver.kill()
        driver.communicate()
        rows.append(
            (world.service, "driver killed during the POST", submit_again(), submit_again(), world.server.n_jobs)
        )

        pid = watcher_pid(world, cluster.address, settings)
        os.kill(pid, signal.SIGKILL)
        before = world.server.n_looks
        until(lambda: world.server.n_looks > before + 3)  # it was started again, and polls
        rows.append((world.service, "watcher killed", submit_again(), submit_again(), world.server.n_jobs))

        cluster.shutdown()
        cluster = start_cluster()
        before = world.server.n_looks
        resume = "import skllm_ray.tuning as t\nprint(len(t.resume_all(polling=t.Polling(0.3, longest_s=1.0))))"
        done = run_script(resume, RAY_ADDRESS=cluster.address, **settings)
        assert done.stdout == "1\n", done.stderr
        until(lambda: world.server.n_looks > before + 3)  # although the driver is gone
        rows.append(
            (world.service, "cluster killed and started again", submit_again(), submit_again(), world.server.n_jobs)
        )
        assert {row[2:] for row in rows} == {(world.server.ids[0], world.server.ids[0], 1)}
        until(lambda: open_store(world.store_url).find(world.server.ids[0]).model is not None, timeout_s=120)
    finally:
        cluster.shutdown()
    return rows


def watcher_pid(world: World, address: str, settings: dict[str, str]) -> int:
    code = """
    import ray, skllm_ray
    skllm_ray.init()
    from skllm_ray.execution.tuning_watcher import watchers
    from skllm_ray.execution.secrets import Sealed
    [watcher] = watchers()
    print(ray.get(watcher.wake.remote(Sealed([]))))
    """
    done = run_script(code, RAY_ADDRESS=address, **settings)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def start_cluster() -> Cluster:
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})


def until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_new_driver_predicts_with_what_a_killed_one_tuned(worlds, monkeypatch) -> None:
    skllm_ray.shutdown()
    world: World = worlds("vertex")
    world.server.states = ("PENDING", *["RUNNING"] * 10, "SUCCEEDED")
    settings = {
        **world.environment,
        "SKLLM_CONFIG_TUNING_STORE": world.store_url,
        "SKLLM_CONFIG_GOOGLE_BUCKET": "bucket",
        "GOOGLE_CLOUD_PROJECT": "project",
        "GOOGLE_CLOUD_LOCATION": "europe-west4",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    cluster = start_cluster()
    try:
        fit = f"""
from skllm_ray.classification import VertexClassifier
VertexClassifier(poll_s=0.3).fit({TEXTS!r}, {LABELS!r})
"""
        driver = start_script(fit, RAY_ADDRESS=cluster.address, **settings)
        until(lambda: world.server.n_looks > 1, timeout_s=120)
        driver.kill()
        driver.communicate()
        attach = f"""
from skllm_ray.classification import VertexClassifier
import skllm_ray, skllm_ray.tuning as tuning
skllm_ray.init()
[job] = tuning.list_jobs()
job = tuning.wait(job.key, timeout_s=60)
clf = VertexClassifier.from_job(job.id)
assert clf.tuned_model_ == job.model and clf.tuning_job_id_ == job.id
assert clf.predict({TEXTS!r}).tolist() == {LABELS!r}
print(job.state)
"""
        done = run_script(attach, RAY_ADDRESS=cluster.address, **settings)
        assert done.stdout == "succeeded\n", done.stderr
        assert world.server.n_jobs == 1
    finally:
        cluster.shutdown()
