"""Real Rays for the tests in this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

import skllm_ray
from skllm_ray.llm.open_models import ModelCache


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
