"""A model that lives in its process, for tests that care about when it is opened and closed, not about answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from skllm_ray.llm.base import Capabilities, Placement, StatefulSpec
from skllm_ray.testing import FakeSpec


@dataclass(frozen=True)
class PlainSpec(StatefulSpec):
    """Opens as itself; subclasses say what else happens."""

    key: str = "test"
    model: str = "gguf::test"
    n_threads: int = 1
    placement: Placement = Placement(num_cpus=1, max_replicas=1)  # noqa: RUF009  frozen, too

    @property
    def capabilities(self) -> Capabilities:
        return replace(FakeSpec(str).capabilities, stateful=True)

    @property
    def identity(self) -> str:
        return self.key

    @property
    def packages(self) -> tuple[str, ...]:
        return ()

    def for_replica(self, n_threads: int) -> PlainSpec:
        return self

    def check(self) -> None:
        pass

    def open(self, resolve_secret: object) -> object:
        return self

    def close(self) -> None:
        pass
