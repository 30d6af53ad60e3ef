"""Rays of every kind: our own, the user's, a running cluster; and processes in which none can work."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

import skllm_ray
from tests.cluster.scripts import run_script, start_script

pytestmark = [pytest.mark.cluster, pytest.mark.deep]

CLASSIFY = """
from skllm_ray.classification import ZeroShotGPTClassifier
clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
"""


@pytest.fixture(autouse=True, scope="module")
def _no_ray_of_our_own() -> None:
    skllm_ray.shutdown()


def test_a_script_prints_nothing_but_what_it_prints_itself_and_what_it_forks_is_refused() -> None:
    """Although its last cluster, which Ray would join, is gone."""
    folder = tempfile.mkdtemp(prefix="r")  # short: Ray's sockets lie in it
    Path(folder, "ray").mkdir()
    Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
    done = run_script(
        CLASSIFY
        + """
import os
from skllm_ray.execution import session
assert session._last_cluster() == "127.0.0.1:9", session._last_cluster()
print(len(clf.predict(["text %d" % i for i in range(300)])), flush=True)
pid = os.fork()
if pid == 0:
    try:
        clf.predict(["b"])
    except Exception as error:
        os.write(1, f"{type(error).__name__}: {error}".encode())
    os._exit(0)
os.waitpid(pid, 0)
""",
        RAY_TMPDIR=folder,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert (done.returncode, done.stderr) == (0, "")
    n_rows, _, refused = done.stdout.partition("\n")
    assert n_rows == "300"
    assert refused.startswith("ClusterError: This process was forked")
    assert "spawn" in refused


def test_killing_the_driver_ends_its_models_and_its_ray() -> None:
    started = kill_a_driver_at_work()
    wait_until_gone([pid for pid, name in started.items() if "Agent" not in name], timeout_s=120)


@pytest.mark.slow
def test_killing_the_driver_leaves_no_process() -> None:
    """Ray's two agents try for 60 s, a figure fixed in Ray, to report to the control service that died with it."""
    wait_until_gone(list(kill_a_driver_at_work()), timeout_s=90)


def kill_a_driver_at_work() -> dict[int, str]:
    """Kill a driver in the middle of ``predict``; return the processes that it had started, by ID, with their names."""
    script = start_script(
        CLASSIFY
        + """
clf.predict(["a"])
print("ready", flush=True)
clf.predict(["text %d" % i for i in range(100_000)])
"""
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    time.sleep(3)
    started = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(script.pid).children(recursive=True)}
    assert any("ModelActor" in name for name in started.values())
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    return started


def wait_until_gone(pids: list[int], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_initialised_ray_is_used_as_it_is() -> None:
    done = run_script(
        """
        import ray
        ray.init("local", num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        before = ray.get_runtime_context().gcs_address
        """
        + _indented(CLASSIFY)
        + """
        assert len(clf.predict(["a"])) == 1
        assert ray.get_runtime_context().gcs_address == before and ray.cluster_resources()["CPU"] == 3
        import skllm_ray
        skllm_ray.shutdown()
        assert ray.is_initialized()
        ray.shutdown()
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        assert len(clf.predict(["a"])) == 1
        """
    )
    assert done.returncode == 0, done.stderr


def test_joins_a_running_cluster_by_address_and_by_environment(tmp_path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        done = run_script(
            f"ADDRESS = {cluster.address!r}\n"
            + CLASSIFY
            + """
import os, ray, skllm_ray
skllm_ray.init(ADDRESS)
assert len(clf.predict(["a"])) == 1
assert ray.get_runtime_context().gcs_address == ADDRESS
skllm_ray.shutdown()
os.environ["RAY_ADDRESS"] = ADDRESS
assert len(clf.predict(["a"])) == 1
assert ray.get_runtime_context().gcs_address == ADDRESS
"""
        )
        assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()


def test_an_address_where_no_ray_is_gives_a_clear_error() -> None:
    done = run_script(
        """
        import skllm_ray
        try:
            skllm_ray.init("127.0.0.1:1")
        except skllm_ray.errors.ClusterError as error:
            print(error)
        """
    )
    assert "could not be joined at 127.0.0.1:1" in done.stdout, done.stderr


def _indented(source: str) -> str:
    return "".join(f"        {line}\n" for line in source.splitlines())


def test_a_node_with_another_version_of_the_package_is_named_before_anything_is_asked(tmp_path):
    other = tmp_path / "skllm_ray-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: skllm-ray\nVersion: 9.9\n")
    done = run_script(
        f"""
        import os
        from ray.cluster_utils import Cluster
        import skllm_ray
        from skllm_ray.classification import ZeroShotGPTClassifier
        from skllm_ray.errors import WorkerMismatchError
        cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
        here = os.environ["PYTHONPATH"]
        os.environ["PYTHONPATH"] = {str(tmp_path)!r} + os.pathsep + here
        cluster.add_node(num_cpus=1)
        os.environ["PYTHONPATH"] = here
        skllm_ray.init(cluster.address)
        try:
            ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["a", "b"]).predict(["x"])
        except WorkerMismatchError as error:
            print(error)
        """
    )
    assert "skllm-ray 9.9 (here" in done.stdout, done.stderr
    assert "runtime_env" in done.stdout
