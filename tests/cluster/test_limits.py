"""The limit that jobs share, on a real Ray: kept by two jobs at once, found again when killed, and no key seen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer
from tests.cluster.scripts import run_script, start_script

pytestmark = pytest.mark.cluster

JOB = """
import sys, skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig

url, address, rpm, n = {url!r}, {address!r}, {rpm}, {n}
skllm_ray.init(address)
SKLLMConfig.set_gpt_url(url)
SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=rpm)
clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-shared-0123456789").fit(None, ["even", "odd"])
table = clf.predict_details([f"row {{i}} is odd" for i in range(n)])
assert table["prediction"].tolist() == ["odd"] * n, table["error"].dropna().tolist()[:3]
print("done", flush=True)
"""

KILL_LIMITER = """
import ray
ray.init({address!r}, namespace="skllm_ray", log_to_driver=False)
ray.kill(ray.get_actor("rate-limiter"), no_restart={gone})
"""


@pytest.fixture
def cluster():
    """A Ray of two nodes, and its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


def two_jobs(server, cluster, rpm, n, disturb=()):
    """Run two jobs of `n` rows at once, and `disturb` them with what comes after so many seconds."""
    source = JOB.format(url=server.url, address=cluster.address, rpm=rpm, n=n)
    jobs = [start_script(source) for _ in range(2)]
    started = time.monotonic()
    while server.n_requests == 0:
        assert all(job.poll() in {None, 0} for job in jobs), jobs[0].communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.1)
    begun = time.monotonic()
    for after_s, what in disturb:
        time.sleep(max(0.0, begun + after_s - time.monotonic()))
        what()
    for job in jobs:
        out, err = job.communicate(timeout=280)
        assert "done" in out, err
    return time.monotonic() - begun


def test_two_jobs_keep_one_limit_while_the_limiter_is_killed_and_removed(cluster):
    def kill(gone):
        return lambda: run_script(KILL_LIMITER.format(address=cluster.address, gone=gone)).check_returncode()

    with ChatServer(requests_per_minute=600) as server:
        two_jobs(server, cluster, 600, 120, [(3, kill(False)), (10, kill(True))])
        assert server.n_refused == 0
        assert server.n_requests == 240


@pytest.mark.slow
def test_two_jobs_use_nearly_all_of_a_quota_in_every_window_and_never_more(cluster):
    with ChatServer(requests_per_minute=600, latency_s=0.2) as server:
        two_jobs(server, cluster, 600, 1000)
        assert server.n_refused == 0
        assert 570 <= server.most_in_window <= 600


def test_the_command_shows_the_limits(cluster):
    with ChatServer() as server:
        run_script(JOB.format(url=server.url, address=cluster.address, rpm=6000, n=300)).check_returncode()
    command = [sys.executable, "-m", "skllm_ray.cli", "limits", "--address", cluster.address]
    table = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "300 / 6000" in table
    lines = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True).stdout
    bucket = json.loads(lines.splitlines()[-1])
    assert (bucket["requests_used"], bucket["refusals"]) == (300, 0)
    assert "sk-shared" not in table + lines


PLANTED = "sk-planted-in-the-open-0123456789"


def test_a_key_is_in_no_log_no_job_info_and_no_task_name(tmp_path):
    """The estimator's own key, on a Ray with its dashboard: all of Ray's files and its job and state APIs are read."""
    source = f"""
import json, ray, skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer
from skllm_ray.errors import SkllmRayError
context = ray.init(
    address="local", num_cpus=2, namespace="skllm_ray", include_dashboard=True, _temp_dir={str(tmp_path)!r}
)
with ChatServer(key={PLANTED!r}[:5] + {PLANTED!r}[5:]) as server:
    SKLLMConfig.set_gpt_url(server.url)
    clf = ZeroShotGPTClassifier(model="custom_url::m", key={PLANTED!r}).fit(None, ["even", "odd"])
    clf.predict(["row %d is odd" % i for i in range(400)])
    wrong = ZeroShotGPTClassifier(model="custom_url::m", key={PLANTED!r} + "x").fit(None, ["even", "odd"])
    try:
        wrong.predict(["row %d is odd" % i for i in range(400)])
    except SkllmRayError as error:
        print("refused", error)
    print("url", context.dashboard_url, flush=True)
    input()
"""
    job = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said, url = [], None
    for line in job.stdout:
        said.append(line)
        if line.startswith("url "):
            url = line.split()[1]
            break
    if url is None:
        raise AssertionError(job.communicate())
    answers = []
    for path in ("api/jobs/", "api/v0/tasks", "api/v0/actors", "nodes?view=summary"):
        with urllib.request.urlopen(f"http://{url}/{path}", timeout=60) as response:
            answers.append(response.read().decode())
    files = [file for file in Path(tmp_path).rglob("*") if file.is_file() and not file.is_symlink()]
    found = [str(file) for file in files if PLANTED.encode() in file.read_bytes()]
    rest, errors = job.communicate("\n", timeout=120)
    assert len(files) > 20
    assert any("_map_block" in answer or "MapBatches" in answer for answer in answers)
    assert found == []
    assert PLANTED not in "".join([*answers, *said, rest, errors])
    assert "refused" in "".join(said)


def test_a_planted_key_is_not_in_the_configuration():
    SKLLMConfig.set_openai_key(PLANTED)
    assert PLANTED not in repr(SKLLMConfig)
