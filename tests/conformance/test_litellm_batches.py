"""Batches through LiteLLM's proxy, which passes files and batches on to a server: here the project's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skllm_ray import batch
from skllm_ray.batch.delivery import deliver, order
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.testing.batch_server import BatchServer
from tests.batch.worlds import read, texts, write
from tests.conformance.conftest import FOLDER, free_port, serving

LITELLM = FOLDER / "litellm" / "bin" / "litellm"
N = 30
KEY = "sk-1f9c7e5b3d2a48960c1e7f5b3d9a2846"
CONFIG = """
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: {url}, api_key: sk-up}}
general_settings: {{master_key: {key}}}
files_settings:
  - {{custom_llm_provider: openai, api_base: {url}, api_key: sk-up}}
"""


@pytest.fixture
def proxied(local_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    if not LITELLM.exists():
        pytest.skip(f"{LITELLM} is missing: run `make conformance`, which installs it with pip")
    monkeypatch.setattr(deliver, "POLLING", Polling(0.1, 1.0, 0.1, 0.0))
    monkeypatch.setattr(order, "GRACE", GracePeriod(1.0, 0.1))
    with BatchServer() as server:
        for name, value in {"OPENAI_API_KEY": "sk-up", "OPENAI_API_BASE": server.url}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("PYTHONPATH", raising=False)
        config, port = tmp_path / "config.yaml", free_port()
        config.write_text(CONFIG.format(url=server.url, key=KEY))
        command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with serving(command, f"http://127.0.0.1:{port}", "/health/liveliness") as url:
            SKLLMConfig.set_gpt_url(f"{url}/v1")
            SKLLMConfig.set_openai_key(KEY)
            yield server


def test_a_job_goes_through_the_proxy(proxied, tmp_path):
    source, output = write(tmp_path / "in.parquet", texts(N)), str(tmp_path / "out")
    clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, ["bad", "good"])
    prices = {"input_price": 1.0, "output_price": 2.0, "batch_price_share": 0.5}
    result = batch.run(clf, source, output, delivery="batch", **prices)
    assert (result.complete, result.errors) == (True, {})
    assert read(output)["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(N)]
    assert proxied.bill.requests == {"standard": 1, "batch": N - 1}
    assert set(proxied.bill.charged.values()) == {1}
    assert result.total.cost_usd == pytest.approx(proxied.bill.usd(1.0, 2.0), abs=1e-9)
