"""The limit that jobs share, on a real Ray: kept by two jobs at once, found again when killed, and no key seen."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

import skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer
from tests.cluster.scripts import run_script, start_script

pytestmark = [pytest.mark.cluster, pytest.mark.deep]

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
from skllm_ray.execution import rate_limiter
ray.kill(ray.get_actor(rate_limiter._NAME), no_restart={gone})
"""


@pytest.fixture(autouse=True, scope="module")
def _no_ray_of_our_own() -> None:
    skllm_ray.shutdown()


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
        two_jobs(server, cluster, 600, 90, [(2, kill(False)), (7, kill(True))])
        assert server.n_refused == 0
        assert server.n_requests == 180


START_LIMITER = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from skllm_ray.execution import rate_limiter
ray.init({address!r}, namespace=rate_limiter.NAMESPACE, log_to_driver=False)
actor = ray.remote(rate_limiter._LimiterActor).options(
    name=rate_limiter._NAME,
    lifetime="detached",
    num_cpus=0,
    max_restarts=-1,
    scheduling_strategy=NodeAffinitySchedulingStrategy({node!r}, soft=True),
).remote()
ray.get(actor.show.remote())
"""


@pytest.mark.slow
def test_a_lost_holder_and_the_lost_node_of_the_limiter_let_nobody_exceed_the_limit(cluster):
    lost = cluster.add_node(num_cpus=2)
    run_script(START_LIMITER.format(address=cluster.address, node=lost.node_id)).check_returncode()
    killed: list[float] = []

    def kill_a_holder():
        mine = psutil.Process().children(recursive=True)
        holders = [one for one in mine if "_complete" in one.name() or "ray::Map" in " ".join(one.cmdline())]
        assert holders
        holders[0].kill()

    def kill_the_node():
        cluster.remove_node(lost, allow_graceful=False)
        killed.append(time.monotonic())

    with ChatServer(requests_per_minute=600) as server:
        answered: list[float] = []
        first = server.answer
        server.answer = lambda body: (answered.append(time.monotonic()), first(body))[1]
        two_jobs(server, cluster, 600, 700, [(8, kill_a_holder), (20, kill_the_node)])
        assert server.n_refused == 0
        assert server.most_in_window <= 600
        assert 1400 <= server.n_requests <= 1400 + 2 * 64
    after = [when for when in answered if when > killed[0]]
    pauses = [b - a for a, b in itertools.pairwise([killed[0], *after])]
    assert max(pauses) < 90  # Ray finds a node dead after 17 to 43 s, and a window lasts 60 s


@pytest.mark.slow
def test_two_jobs_use_nearly_all_of_a_quota_in_every_window_and_never_more(cluster):
    with ChatServer(requests_per_minute=600, latency_s=0.2) as server:
        two_jobs(server, cluster, 600, 1000)
        assert server.n_refused == 0
        assert 570 <= server.most_in_window <= 600


PLANTED = "sk-planted-in-the-open-0123456789"
TOKEN = "t" * 43
PATHS = [
    "api/jobs/",
    "api/v0/tasks?detail=1&limit=1000",
    "api/v0/actors?detail=1",
    "api/v0/workers?detail=1",
    "api/v0/objects?detail=1",
    "api/v0/runtime_envs?detail=1",
    "logical/actors",
    "nodes?view=summary",
]


@pytest.fixture
def short_path():
    """A folder for Ray, whose sockets' paths must not exceed 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def look_everywhere(source: str, planted: list[str], folder: Path, **variables: str) -> str:
    """Run `source`, which is told what is `planted` by its standard input; return what it said.

    It prints "url" and the dashboard's address when it is done, and waits for a line. What is planted must be in none
    of Ray's files, in no answer of its job and state APIs, and in nothing that was printed.
    """
    job = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **variables},
    )
    job.stdin.write("".join(f"{one}\n" for one in planted))
    job.stdin.flush()
    said, url = [], None
    for line in job.stdout:
        said.append(line)
        if line.startswith("url "):
            url = line.split()[1]
            break
    if url is None:
        raise AssertionError(job.communicate())
    answers = []
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{url}/api/jobs/", timeout=60)
    for path in PATHS:
        request = urllib.request.Request(f"http://{url}/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  the dashboard
            answers.append(response.read().decode())
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    rest, errors = job.communicate("\n", timeout=120)
    assert len(files) > 20
    assert any("_map_block" in answer or "MapBatches" in answer for answer in answers)
    told = "".join([*answers, *said, rest, errors])
    assert [(one[:6], str(file)) for one in planted for file in files if one.encode() in file.read_bytes()] == []
    assert [one[:6] for one in planted if one in told] == []
    return "".join(said)


def test_a_key_is_in_no_log_no_job_info_and_no_task_name(short_path):
    """The estimator's own key, on a Ray with its dashboard: all of Ray's files and its job and state APIs are read."""
    source = f"""
import json, ray, skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer
from skllm_ray.errors import SkllmRayError
context = ray.init(
    address="local", num_cpus=2, namespace="skllm_ray", include_dashboard=True, _temp_dir={str(short_path)!r}
)
key = input()  # not in this source: Ray's job API shows a driver's command
with ChatServer(key=key) as server:
    SKLLMConfig.set_gpt_url(server.url)
    clf = ZeroShotGPTClassifier(model="custom_url::m", key=key).fit(None, ["even", "odd"])
    clf.predict(["row %d is odd" % i for i in range(400)])
    SKLLMConfig.set_azure_api_base(server.root)
    azure = ZeroShotGPTClassifier(model="azure::d").fit(None, ["even", "odd"])
    azure.key = key
    azure.predict(["row %d is odd" % i for i in range(20)])
    wrong = ZeroShotGPTClassifier(model="custom_url::m", key=key + "x").fit(None, ["even", "odd"])
    try:
        wrong.predict(["row %d is odd" % i for i in range(400)])
    except SkllmRayError as error:
        print("refused", error)
    print("url", context.dashboard_url, flush=True)
    input()
"""
    said = look_everywhere(source, [PLANTED], short_path)
    assert "refused" in said


CREDENTIALS = """
import sys, ray, skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier, ZeroShotVertexClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayError
context = ray.init(address="local", num_cpus=2, namespace="skllm_ray", include_dashboard=True, _temp_dir={folder!r})
secret, session, google, azure, token, account = (input() for _ in range(6))
SKLLMConfig.set_gpt_url({url!r})
SKLLMConfig.set_openai_key("sk-local")
clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["even", "odd"])
s3 = {{"endpoint_override": {s3!r}, "scheme": "http", "region": "us-east-1", "access_key": "key"}}
s3 |= {{"secret_key": secret, "session_token": session}}
done = batch.run(clf, "s3://bucket/in.parquet", "s3://bucket/out", storage_options=s3, unit_rows=100)
assert done.complete, done
nowhere = {{"endpoint_override": "127.0.0.1:9", "scheme": "http", "retry_time_limit": 1, "access_token": google}}
nowhere["credential_token_expiration"] = "2100-01-01T00:00:00+00:00"
azure_options = {{"account_name": "a", "account_key": azure}}
for place, options in (("gs://bucket", nowhere), ("abfss://c@a.dfs.core.windows.net", azure_options)):
    try:
        batch.run(clf, place + "/in.parquet", place + "/out", storage_options=options)
    except (SkllmRayError, OSError) as error:
        print("refused", place, error)
SKLLMConfig.set_google_project("project")
vertex = ZeroShotVertexClassifier(model="gemini-x").fit(None, ["even", "odd"])
assert vertex.predict(["row %d is odd" % i for i in range(400)]).tolist() == ["odd"] * 400
try:
    vertex.predict(["tell me"] * 300)
except SkllmRayError as error:
    print("refused vertex", error)
print("url", context.dashboard_url, flush=True)
input()
"""


@pytest.mark.slow
def test_credentials_of_stores_and_of_google_are_in_no_log_and_no_job_info(short_path, s3_server, tmp_path):
    """An S3 secret and session, a Google token, an Azure key, a service account, the token that it is exchanged for."""
    import pyarrow as pa
    import pyarrow.fs as pafs
    import pyarrow.parquet as pq

    from skllm_ray.testing import StatusFault
    from skllm_ray.testing.tuning_http import json_response
    from skllm_ray.testing.tuning_server import TuningServer
    from tests.tuning_worlds import google_environment, private_key

    token = "ya29.planted-exchanged-0123456789"
    s3 = pafs.S3FileSystem(
        endpoint_override=s3_server, scheme="http", region="us-east-1", access_key="key", secret_key="x",
        allow_bucket_creation=True,
    )  # fmt: skip
    s3.create_dir("bucket")
    pq.write_table(pa.table({"text": [f"row {i} is odd" for i in range(300)]}), "bucket/in.parquet", filesystem=s3)
    planted = ["planted-s3-secret-01234", "planted-s3-session-0123", "ya29.planted-gs-token-0123"]
    planted += ["cGxhbnRlZC1henVyZS1rZXktMDEyMzQ1Njc4OQ==", token, private_key().splitlines()[3]]

    def answer(body):
        told = str(body)
        if "tell me" in told:
            return StatusFault(401, f"Request had invalid credentials: {token}")
        return '{"label": "odd"}'

    with ChatServer(answer) as chat, TuningServer() as google:
        exchanged = {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
        google._token = lambda **asked: json_response(exchanged)
        environment = {**google_environment(google, tmp_path), "GOOGLE_VERTEX_BASE_URL": chat.root}
        source = CREDENTIALS.format(folder=str(short_path), url=chat.url, s3=s3_server)
        said = look_everywhere(source, planted, short_path, **environment)
    for place in ("gs://bucket", "abfss://c@a.dfs.core.windows.net", "vertex"):
        assert f"refused {place}" in said


def test_a_planted_key_is_not_in_the_configuration():
    SKLLMConfig.set_openai_key(PLANTED)
    assert PLANTED not in repr(SKLLMConfig)


STOP_LIMITER = """
import os, signal, sys, time
import ray, skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError
from skllm_ray.execution import rate_limiter
from ray._private.state import actors

skllm_ray.init("local", num_cpus=2)
SKLLMConfig.set_gpt_url({url!r})
SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=60_000)
clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-shared-0123456789").fit(None, ["even", "odd"])
texts = [f"row {{i}} is odd" for i in range(100)]
assert clf.predict(texts).tolist() == ["odd"] * 100
actor = ray.get_actor(rate_limiter._NAME, namespace=rate_limiter.NAMESPACE)
pid = actors(actor._actor_id.hex())["Pid"]
os.kill(pid, signal.SIGSTOP)
"""

CONTINUED = """
import threading
threading.Timer(20, os.kill, (pid, signal.SIGCONT)).start()
table = clf.predict_details(texts)
assert table["prediction"].tolist() == ["odd"] * 100, table["error"].dropna().tolist()[:3]
assert actors(actor._actor_id.hex())["Pid"] == pid
print("done", flush=True)
"""

STOPPED_FOR_EVER = """
SKLLMConfig.set_timeouts(row_s=12)
short = ZeroShotGPTClassifier(model="custom_url::m", key="sk-shared-0123456789").fit(None, ["even", "odd"])
try:
    short.predict(texts)
except JobFailedError as error:
    assert "the shared limit gave no answer for" in str(error), error
else:
    raise AssertionError("it was answered")
SKLLMConfig.set_timeouts(row_s=300)
assert clf.predict(texts).tolist() == ["odd"] * 100
assert actors(actor._actor_id.hex())["Pid"] != pid
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("then", [CONTINUED, STOPPED_FOR_EVER], ids=["continued", "for ever"])
def test_a_limiter_that_is_stopped_is_waited_for_and_one_that_stays_so_is_started_anew(then):
    with ChatServer() as server:
        done = run_script((STOP_LIMITER + then).format(url=server.url), timeout_s=240)
    assert "done" in done.stdout, done.stderr
