"""What the tests of batch jobs share: inputs, and an estimator whose backend is here and counts its questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.tasks.base import ChatRequest, RowError
from skllm_ray.testing import ChatServer, FakeSpec

LABELS = ["bad", "good"]
asked: Counter[str] = Counter()


def answer(request: ChatRequest) -> str | RowError:
    """Say good where the text does; count who asked."""
    text = request.messages[-1]["content"].rpartition("Text:")[2]
    asked[text.strip("`\n ")] += 1
    if "POISON" in text:
        return RowError("content_filter", "The model refused to answer.")
    return '{"label": "good"}' if "good" in text else '{"label": "bad"}'


class Local(ZeroShotGPTClassifier):
    """A classifier that asks `answer`."""

    script: Callable[[ChatRequest], str | RowError] = staticmethod(answer)

    def _resolve(self) -> Any:
        return FakeSpec(type(self).script, key=f"batch-{type(self).__name__}")


def classifier(**params: Any) -> Local:
    return Local(on_error="coerce", **params).fit(None, LABELS)


def write(path: Path, texts: list[Any], row_group_size: int = 100, **columns: Any) -> str:
    """Write texts, with an id, to a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def read(output: Path | str) -> pd.DataFrame:
    """Return all parts' rows, in the input's order."""
    parts = sorted(Path(output).glob("part-*.parquet"))
    return pd.concat([pq.read_table(part).to_pandas() for part in parts], ignore_index=True)


def texts(n: int) -> list[str]:
    return [f"a good thing, number {i}" if i % 3 else f"an awful thing, number {i}" for i in range(n)]


def api_classifier(server: ChatServer, model: str = "m", **params: Any) -> ZeroShotGPTClassifier:
    """Return a classifier that asks a local server."""
    SKLLMConfig.set_gpt_url(server.url)
    return ZeroShotGPTClassifier(model=f"custom_url::{model}", on_error="coerce", **params).fit(None, LABELS)
