"""Where model actors land, what they see there, and how long they stay. GPUs are Ray's logical ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

import skllm_ray
from tests.cluster.scripts import run_script

pytestmark = pytest.mark.cluster

CLUSTER = """
import json, time, psutil, ray, skllm_ray
from ray.cluster_utils import Cluster
from skllm_ray.config import SKLLMConfig
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.errors import PlacementError
from skllm_ray.execution import model_pool
from skllm_ray.execution.status import loaded_replicas
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


def run(source: str) -> Any:
    done = run_script(CLUSTER + source, timeout_s=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_actors_land_where_their_gpus_are_and_see_those_alone() -> None:
    found = run(
        """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
cluster.add_node(num_cpus=2, num_gpus=2)
skllm_ray.init(cluster.address)
gpu_node = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
found = {}
for name, resources in {
    "one each": dict(num_gpus=1, num_cpus=0, min_replicas=2),
    "half each": dict(num_gpus=0.5, num_cpus=0, min_replicas=4),
    "two together": dict(num_gpus=2, num_cpus=1),
    "as many as fit": dict(num_gpus=1, num_cpus=1, max_replicas=9),
    "none": dict(num_gpus=0, num_cpus=2, min_replicas=2),
}.items():
    SKLLMConfig.set_gguf_resources(**resources)
    assert len(classifier().predict(["good", "bad"] * 40)) == 80
    replicas = loaded_replicas("gguf::demo")
    found[name] = [sorted(replica.gpus for replica in replicas), sorted(replica.threads for replica in replicas)]
    freed = ModelCache.clear()
    assert sorted(entry.pid for entry in freed) == sorted(replica.pid for replica in replicas)
    assert all(entry.memory_mb > 10 and is_gone(entry.pid) for entry in freed)
SKLLMConfig.set_gguf_resources(num_gpus=3, num_cpus=1)
model_pool.PLACEMENT_TIMEOUT_S = 2
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
    assert "each of 1 CPU and 3 GPU" in found["refused"]
    assert "The cluster has CPU 6, GPU 2" in found["refused"]


def test_a_model_stays_for_the_next_job_when_asked_and_goes_when_idle() -> None:
    found = run(
        """
import subprocess, sys
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
job = '''
import json, sys, skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.execution.status import loaded_replicas
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
pids = dict(first=first, second=second, third=third)
print(json.dumps(dict(pids, alive=alive, gone=gone, expired=expired, again=len(again))))
"""
    )
    assert found["first"] == found["second"] == found["third"] and len(found["first"]) == 1
    assert all(found["alive"] + found["gone"] + found["expired"])
    assert found["again"] == 60
