"""Provider batches on a real Ray: workers gather, the driver orders, and a new cluster takes up what another began."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from skllm_ray import batch
from skllm_ray.batch.delivery import deliver
from skllm_ray.batch.job import watching
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.execution.watcher import named_watchers
from skllm_ray.testing.batch_server import BatchFault, BatchServer
from tests.batch.worlds import LABELS, read, texts, write
from tests.cluster.scripts import start_script

pytestmark = pytest.mark.cluster

DRIVER = """
import sys
import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig

url, source, output = sys.argv[1:] if len(sys.argv) > 3 else {arguments!r}
SKLLMConfig.set_gpt_url(url)
{start}
clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, ["bad", "good"])
batch.run(clf, source, output, delivery="batch", unit_rows=50, input_price=1.0, output_price=2.0)
"""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(deliver, "POLLING", Polling(0.05, 1.0, 0.05, 0.0))
    monkeypatch.setattr(watching, "PAUSES", Polling(0.5, 1.0, 0.5, 0.0))
    yield
    SKLLMConfig.reset()


@pytest.mark.deep
def test_workers_gather_and_a_driver_that_was_killed_is_gone_on_from(ray_here, tmp_path):
    source, output = write(tmp_path / "in.parquet", texts(200)), str(tmp_path / "out")
    with BatchServer() as server:
        server.batch_faults.append(BatchFault.STUCK)
        first = start_script(
            DRIVER.format(arguments=(server.url, source, output), start="skllm_ray.init(local_mode=True)")
        )
        deadline = time.monotonic() + 120
        while not any(one.status == "in_progress" for one in server.batches.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        (one,) = server.batches.values()
        one.fault = BatchFault.EXPIRED
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, LABELS)
        options = {"unit_rows": 50, "input_price": 1.0, "output_price": 2.0}
        result = batch.run(clf, source, output, delivery="batch", **options)
    found = read(output)
    assert result.complete
    assert found["id"].tolist() == list(range(200))
    assert found["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(200)]
    assert set(server.bill.charged.values()) == {1}
    assert len(server.bill.charged) == 200
    assert len(server.batches) == 2
    assert result.total.cost_usd == pytest.approx(server.bill.usd(1.0, 2.0, {"batch": 1.0}))
    assert not list((Path(output) / "_skllm_ray" / "journal").rglob("*.jsonl"))


@pytest.mark.slow
def test_a_watcher_of_the_cluster_does_what_a_driver_that_was_killed_has_left(ray_here, tmp_path):
    source, output = write(tmp_path / "in.parquet", texts(100)), str(tmp_path / "out")
    start = f"skllm_ray.init({ray.get_runtime_context().gcs_address!r})"
    with BatchServer() as server:
        server.batch_faults.append(BatchFault.STUCK)
        driver = start_script(DRIVER.format(arguments=(server.url, source, output), start=start))
        until(lambda: any(one.status == "in_progress" for one in server.batches.values()))
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        (one,) = server.batches.values()
        one.fault = None
        until(lambda: len(list(Path(output).glob("part-*"))) == 2)
        until(lambda: not named_watchers(watching._PREFIX))
    found = read(output)
    assert found["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(100)]
    assert set(server.bill.charged.values()) == {1}
    assert len(server.batches) == 1


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)
