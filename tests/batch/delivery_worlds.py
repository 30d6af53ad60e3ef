"""A server of batches, a job on it, and drivers that die on purpose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skllm_ray import batch
from skllm_ray.batch.delivery.batch_records import open_records, ordered_keys
from skllm_ray.batch.delivery.collect import Collector
from skllm_ray.batch.delivery.order import Orders
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.provider_batches import ProviderBatch
from skllm_ray.testing.batch_server import BatchServer
from tests.batch.worlds import LABELS, read, texts, write

N = 60
PRICES: dict[str, Any] = {"input_price": 1.0, "output_price": 2.0, "batch_price_share": 0.5}


class World:
    """A server, an input of 60 rows in three units, and a job on it."""

    def __init__(self, folder: Path, server: BatchServer) -> None:
        self.server = server
        self.folder = folder
        self.source = write(folder / "in.parquet", texts(N))
        self.output = str(folder / "out")

    def run(self, estimator: Any = None, **options: Any) -> Any:
        given = {"delivery": "batch", "unit_rows": 20, **PRICES, **options}
        output = given.pop("output", self.output)
        return batch.run(estimator or self.classifier(), self.source, output, **given)

    def classifier(self, **params: Any) -> ZeroShotGPTClassifier:
        SKLLMConfig.set_gpt_url(self.server.url)
        return ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce", **params).fit(None, LABELS)

    @property
    def paid_usd(self) -> float:
        return self.server.bill.usd(1.0, 2.0)

    @property
    def folder_of_output(self) -> Any:
        return open_folder(self.output, StorageOptions(), {})

    @property
    def records(self) -> list[ProviderBatch]:
        return open_records(self.folder_of_output).jobs()

    def check_home(self, *, n_files: int = 0) -> None:
        """Check that every row is there once, right, paid once, and that nothing is left of the delivery."""
        found = read(self.output)
        assert found["id"].tolist() == list(range(N))
        assert found["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(N)]
        assert set(self.server.bill.charged.values()) == {1}
        assert len(self.server.bill.charged) == N
        assert not ordered_keys(self.folder_of_output)
        assert list((Path(self.output) / SYSTEM / "journal").rglob("*.jsonl")) == []
        assert len(self.server.files) == n_files


class Death(BaseException):
    """Stands for the death of a process: no code of ours lives on."""


def die_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    seen: Counter[str] = Counter()

    def die(reached: str) -> None:
        seen[reached] += 1
        if reached == step and seen[step] == (5 if step == "line" else 1):
            raise Death

    for kind in (Orders, Collector):
        monkeypatch.setattr(kind, "on_step", staticmethod(die), raising=False)
