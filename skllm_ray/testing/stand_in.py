"""A local model that takes as long as it is told and writes down what it was asked: for tests of clusters."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from skllm_ray.config import Price, RateLimit
from skllm_ray.llm.base import Backend, Capabilities, Placement, StatefulSpec
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply

_MARK: Final = "row "
_ONE_CPU: Final = Placement(num_cpus=1)


@dataclass(frozen=True, kw_only=True)
class StandInSpec(StatefulSpec):
    """A model that answers with the first label after `row_s` seconds for each row, one row after the other.

    Examples
    --------
    >>> import tempfile
    >>> from skllm_ray.tasks.base import ChatRequest, Choices
    >>> spec = StandInSpec(folder=tempfile.mkdtemp(), row_s=0.0)
    >>> backend = spec.open(None)
    >>> asked = ChatRequest(({"role": "user", "content": "row 7"},), Choices(("good", "bad")))
    >>> backend.complete([asked])[0].text, asked_rows(spec.folder)
    ('{"label": "good"}', Counter({7: 1}))
    """

    folder: str
    """Where it writes what it was asked. All replicas must see it."""
    row_s: float = 0.01
    load_s: float = 0.0
    """How long it loads."""
    slow: float = 1.0
    """How many times as long one of the replicas takes: the first that loads."""
    model: str = "standin::model"
    placement: Placement = _ONE_CPU
    limit: RateLimit | None = None
    packages: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Which model it is: one for each folder."""
        return f"{self.model} {self.folder}"

    @property
    def capabilities(self) -> Capabilities:
        """A free local model."""
        return Capabilities(
            gives_log_probs=False,
            writes_labels=False,
            streams=False,
            takes_json_schemas=True,
            embeds=False,
            stateful=True,
            calls_at_once=None,
            stays_open=True,
            retry=None,
            price=Price(0.0),
            cache=None,
        )

    @property
    def identity(self) -> str:
        """What its answers depend on."""
        return self.model

    def for_replica(self, n_threads: int) -> StandInSpec:
        """Return the same: it has no threads."""
        del n_threads
        return replace(self)

    def check(self) -> None:
        """Do nothing: there is nothing to miss."""

    def open(self, resolve_secret: Any) -> StandIn:
        """Load it."""
        del resolve_secret
        time.sleep(self.load_s)
        return StandIn(self)


class StandIn(Backend):
    """A loaded stand-in."""

    def __init__(self, spec: StandInSpec) -> None:
        self._spec = spec
        self._turn = threading.Lock()
        self._log = Path(spec.folder, f"asked-{os.getpid()}-{time.time_ns()}.jsonl")
        self._row_s = spec.row_s
        if spec.slow != 1.0:
            with suppress(FileExistsError):
                Path(spec.folder, "slow").touch(exist_ok=False)
                self._row_s *= spec.slow

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Answer each row after its time; a text that ends in ``*N`` takes N times as long."""
        with self._turn:
            texts = [request.messages[-1]["content"] for request in requests]
            self._write({"began": time.time(), "rows": [_number(text) for text in texts]})
            time.sleep(self._row_s * sum(_times(text) for text in texts))
            self._write({"ended": time.time(), "n": len(texts)})
            return [Reply(_answer(request)) for request in requests]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Refuse: it makes no vectors."""
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing."""

    def _write(self, line: dict[str, Any]) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")


def asked_rows(folder: str) -> Counter[int]:
    """Return how often each row was asked about, by the number that stands behind ``row`` in its text."""
    return Counter(row for line in asked_calls(folder) for row in line.get("rows", ()))


def asked_calls(folder: str) -> list[dict[str, Any]]:
    """Return when calls began and ended, and which rows they were about, of all replicas that there were."""
    lines = (line for path in sorted(Path(folder).glob("asked-*.jsonl")) for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines if line.endswith("}")]


def _number(text: str) -> int:
    found = text.rpartition(_MARK)[2].split(maxsplit=1)
    digits = "".join(one for one in (found[0] if found else "") if one.isdigit())
    return int(digits or -1)


def _times(text: str) -> float:
    found = text.rpartition("*")[2].split(maxsplit=1)
    with suppress(ValueError, IndexError):
        return float(found[0].strip("`'\".,"))
    return 1.0


def _answer(request: ChatRequest) -> str:
    return json.dumps({"label": request.choices.labels[0]}) if request.choices is not None else "text"
