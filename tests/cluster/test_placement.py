"""Where model actors land, what they see there, and how long they stay. GPUs are Ray's logical ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

import skllm_ray
from tests.cluster.scripts import run_script

pytestmark = [pytest.mark.cluster, pytest.mark.deep]

CLUSTER = """
import json, os, time, psutil, ray, skllm_ray
from ray.cluster_utils import Cluster
from skllm_ray.config import SKLLMConfig
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.errors import PlacementError
from skllm_ray.execution import model_pool
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache

def is_gone(pid, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not psutil.pid_exists(pid)

def classifier():
    return ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
"""


@pytest.fixture(autouse=True, scope="module")
def _no_ray_of_our_own() -> None:
    skllm_ray.shutdown()


def told(output: str) -> Any:
    """Return what a script printed as JSON, last: Ray prints there what became of workers, at any time."""
    return json.loads([line for line in output.splitlines() if line[:1] in {"[", "{", '"'}][-1])


def run(source: str) -> Any:
    done = run_script(CLUSTER + source, timeout_s=280)
    assert done.returncode == 0, done.stderr
    return told(done.stdout)


def test_actors_land_where_their_gpus_are_and_see_those_alone() -> None:
    found = run(
        """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
cluster.add_node(num_cpus=2, num_gpus=2)
skllm_ray.init(cluster.address)
gpu_node = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
found = {}
fitting = {"one each": 2, "half each": 4, "two together": 1, "as many as fit": 2, "none": 2}
for name, resources in {
    "one each": dict(num_gpus=1, num_cpus=0, min_replicas=2),
    "half each": dict(num_gpus=0.5, num_cpus=0, min_replicas=4),
    "two together": dict(num_gpus=2, num_cpus=1),
    "as many as fit": dict(num_gpus=1, num_cpus=1, max_replicas=9),
    "none": dict(num_gpus=0, num_cpus=2, min_replicas=2),
}.items():
    SKLLMConfig.set_gguf_resources(**resources)
    deadline = time.monotonic() + 60
    while True:  # replicas above min_replicas are loaded while there is work, and a short call can end before that
        assert len(classifier().predict(["good", "bad"] * 40)) == 80
        replicas = loaded_replicas("gguf::demo")
        if len(replicas) >= fitting[name] or time.monotonic() > deadline:
            break
    found[name] = [sorted(replica.gpus for replica in replicas), sorted(replica.threads for replica in replicas)]
    freed = ModelCache.clear()
    assert sorted(entry.pid for entry in freed) == sorted(replica.pid for replica in replicas)
    assert all(entry.memory_mb > 10 and is_gone(entry.pid) for entry in freed)
SKLLMConfig.set_gguf_resources(num_gpus=3, num_cpus=1, placement_timeout_s=2)
try:
    classifier().predict(["good"])
except PlacementError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""
    )
    assert found["one each"] == [["0", "1"], [1, 1]]
    assert sorted(found["half each"][0]) == ["0", "0", "1", "1"]
    assert found["two together"] == [["0,1"], [1]]
    assert found["as many as fit"][0] == ["0", "1"]
    assert found["none"] == [["", ""], [2, 2]]
    assert "each of 1 CPU and 3 GPU within 2 s" in found["refused"]
    assert "The cluster has CPU 6, GPU 2" in found["refused"]


@pytest.mark.slow
def test_a_model_stays_for_the_next_job_when_asked_and_goes_when_idle() -> None:
    found = run(
        """
import subprocess, sys
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
job = '''
import json, sys, skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.execution.cluster_status import loaded_replicas
skllm_ray.init(sys.argv[1])
SKLLMConfig.set_gguf_resources(num_cpus=1, keep_alive_s=float(sys.argv[2]))
ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"]).predict(["good", "bad"])
print(json.dumps([replica.pid for replica in loaded_replicas("gguf::demo")]))
skllm_ray.shutdown()
'''
def run_job(keep_alive_s):
    command = [sys.executable, "-c", job, cluster.address, str(keep_alive_s)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
first, second = run_job(600), run_job(600)
alive = [psutil.pid_exists(pid) for pid in second]
skllm_ray.init(cluster.address)
cleared = [entry.pid for entry in ModelCache.clear()]  # by a driver that never used it
unloaded = [is_gone(pid) for pid in cleared]
SKLLMConfig.set_gguf_resources(num_cpus=1, keep_alive_s=600)
classifier().predict(["good"])
third = [replica.pid for replica in loaded_replicas("gguf::demo")]
ModelCache.clear()
gone = [is_gone(pid) for pid in third]
SKLLMConfig.set_gguf_resources(num_cpus=1, keep_alive_s=3)
classifier().predict(["good"])
short = [replica.pid for replica in loaded_replicas("gguf::demo")]
expired = [is_gone(pid, 90) for pid in short]
again = list(classifier().predict(["good", "bad"] * 30))
SKLLMConfig.set_gguf_resources(num_cpus=1, keep_alive_s=600)
ModelCache.clear()
classifier().predict(["good"])
orphans = [replica.pid for replica in loaded_replicas("gguf::demo")]
from skllm_ray.execution.pool_actor import SHARED
pool = ray.get_actor(SHARED, namespace="skllm_ray")
os.kill(ray.get(pool.__ray_call__.remote(lambda pool: os.getpid())), 9)
classifier().predict(["good"])
orphans_gone = [is_gone(pid) for pid in orphans]
pids = dict(first=first, second=second, cleared=cleared, third=third)
lasting = dict(alive=alive, unloaded=unloaded, gone=gone, expired=expired, orphans_gone=orphans_gone)
print(json.dumps(dict(pids, **lasting, again=len(again))))
"""
    )
    assert found["first"] == found["second"] == found["cleared"] and len(found["first"]) == 1
    assert found["third"] != found["first"]
    assert all(found["alive"] + found["unloaded"] + found["gone"] + found["expired"] + found["orphans_gone"])
    assert found["again"] == 60


def test_replicas_are_added_when_there_is_room_and_what_cannot_load_on_one_node_is_loaded_on_another() -> None:
    found = run(
        """
import dataclasses, os, pathlib, tempfile
from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.base import Placement, StatefulSpec
from skllm_ray.tasks.base import Reply
from skllm_ray.testing import FakeSpec

@dataclasses.dataclass(frozen=True)
class Spec(StatefulSpec):
    key: str
    bad_node: str = ""
    dies_once: str = ""
    n_threads: int = 1
    model: str = "gguf::test"
    placement: Placement = Placement(num_cpus=1, min_replicas=1, max_replicas=1)
    identity = packages = ""
    @property
    def capabilities(self):
        return dataclasses.replace(FakeSpec(str).capabilities, stateful=True)
    def for_replica(self, n_threads):
        return self
    def check(self):
        pass
    def open(self, resolve_secret):
        if self.dies_once and not pathlib.Path(self.dies_once).exists():
            pathlib.Path(self.dies_once).touch()
            os._exit(1)
        if ray.get_runtime_context().get_node_id() == self.bad_node or self.bad_node == "all":
            raise ModelLoadError("the file is damaged")
        return self
    def complete(self, requests):
        return [Reply("done")] * len(requests)
    def embed(self, texts):
        raise NotImplementedError
    def close(self):
        pass

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
skllm_ray.init(cluster.address)
found = {}
SKLLMConfig.set_gguf_resources(num_cpus=1, max_replicas=2, placement_timeout_s=20)
clf = classifier()
clf.predict(["good"])
first = [replica.pid for replica in loaded_replicas("gguf::demo")]
cluster.add_node(num_cpus=1)
deadline = time.monotonic() + 60
while len(loaded_replicas("gguf::demo")) < 2 and time.monotonic() < deadline:
    clf.predict(["good"])
    time.sleep(0.2)
labels = clf.predict(["good", "bad"] * 20)
grown = [first, [replica.pid for replica in loaded_replicas("gguf::demo")], len(labels)]
ModelCache.clear()
for n, node in enumerate(ray.nodes()):
    pool = model_pool.connect(Spec(f"damaged {n}", bad_node=node["NodeID"]))
    found[f"damaged {n}"] = pool.complete([None])[0].text
    ModelCache.clear()
pool = model_pool.connect(Spec("dies", dies_once=tempfile.mkdtemp() + "/died"))
found["dies"] = pool.complete([None])[0].text
ModelCache.clear()
try:
    model_pool.connect(Spec("everywhere", bad_node="all"))
except ModelLoadError as error:
    found["everywhere"] = str(error)
print(json.dumps([found, *grown]))
"""
    )
    found, first, grown, n_labels = found
    assert len(first) == 1 and len(grown) == 2 and grown[0] == first[0]
    assert n_labels == 40
    assert found == {
        "damaged 0": "done",
        "damaged 1": "done",
        "dies": "done",
        "everywhere": "the file is damaged",
    }
