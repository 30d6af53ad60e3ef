"""Real Rays for the tests in this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import skllm_ray
from skllm_ray.execution import ray_state
from skllm_ray.llm.open_models import ModelCache

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests that share a Ray follow upon one another, and try each test of this folder up to three times.

    Real processes on a busy machine miss a deadline now and then. pytest's summary tells how many tests were tried
    again, so that one that often is does not stay unseen.
    """
    ours = [item for item in items if item.path.parent == HERE]
    for item in ours:
        item.add_marker(pytest.mark.flaky(reruns=2))
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    for place, item in zip(places, sorted(ours, key=shares_ray, reverse=True), strict=True):
        items[place] = item


def shares_ray(item: pytest.Item) -> bool:
    return "ray_here" in getattr(item, "fixturenames", ())


@contextmanager
def folder_for_ray() -> Iterator[str]:
    """Give a folder, of a short name, since the sockets of a Ray lie in it."""
    folder = tempfile.mkdtemp(prefix="r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def rays_in(folder: str) -> Iterator[None]:
    """Let Rays that begin meanwhile lie in `folder`: they neither join nor meet those that lie elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="module", autouse=True)
def _own_folder() -> Iterator[None]:
    """Give each module's Rays a folder of their own, so that none joins what another left behind."""
    with folder_for_ray() as folder, rays_in(folder):
        yield


@pytest.fixture(scope="session")
def _shared_folder() -> Iterator[str]:
    with folder_for_ray() as folder:
        yield folder
        skllm_ray.shutdown()


@pytest.fixture(scope="module")
def ray_here(_own_folder: None, _shared_folder: str) -> Iterator[None]:
    """The Ray that the library started by itself, one for all modules; each finds it without models."""
    with rays_in(_shared_folder):
        if not ray_state.is_initialised():
            skllm_ray.init()
        ModelCache.clear()
        yield
        ModelCache.clear()


@pytest.fixture(autouse=True)
def _leave_local_mode() -> Iterator[None]:
    yield
    ModelCache.remove("gguf::demo in process")
