"""Real Rays for the tests in this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import skllm_ray
from skllm_ray.llm.open_models import ModelCache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try a test of this folder twice: real processes on a busy machine miss a deadline now and then.

    pytest's summary tells how many were tried again, so that one that often is does not stay unseen.
    """
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="module", autouse=True)
def _own_folder() -> Iterator[None]:
    """Give each module's Rays a folder of their own, so that none joins what another left behind."""
    before = os.environ.get("RAY_TMPDIR")
    folder = tempfile.mkdtemp(prefix="r")  # a short name: Ray's sockets lie in it
    os.environ["RAY_TMPDIR"] = folder
    yield
    if before is None:
        del os.environ["RAY_TMPDIR"]
    else:
        os.environ["RAY_TMPDIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_here(_own_folder: None) -> Iterator[None]:
    """A Ray that the library started by itself, one for each module."""
    skllm_ray.shutdown()
    skllm_ray.init()
    yield
    skllm_ray.shutdown()


@pytest.fixture(autouse=True)
def _leave_local_mode() -> Iterator[None]:
    yield
    ModelCache.remove("gguf::demo in process")
