"""A llama.cpp that dies of its fastest kernels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from skllm_ray.errors import SkllmRayWarning
from skllm_ray.llm.gpt.clients.llama_cpp import kernels
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.library import import_llama_cpp
from skllm_ray.tasks import ZeroShotTask


class BuiltWithAMX:
    """The real library, which says that it was compiled with AMX."""

    def __init__(self) -> None:
        self._lib = import_llama_cpp()

    def __getattr__(self, name: str):
        return getattr(self._lib, name)

    def llama_print_system_info(self) -> bytes:
        return b"CPU : AVX2 = 1 | AMX_INT8 = 1 | REPACK = 1 | "


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[str]:
    """Count the tries, and forget what is known of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._survives.cache_clear()
    found: list[str] = []
    run = kernels.subprocess.run
    monkeypatch.setattr(kernels.subprocess, "run", lambda *args, **more: found.append("try") or run(*args, **more))
    yield found
    kernels._survives.cache_clear()


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Let the process that tries them die of an illegal instruction."""
    script = tmp_path / "dies.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setattr(kernels, "SCRIPT", script)


def test_a_build_without_amx_is_not_tried(tries: list[str]) -> None:
    without = SimpleNamespace(llama_print_system_info=lambda: b"CPU : AVX2 = 1 | REPACK = 1 | ")
    assert kernels.lays_out_weights(without)
    assert tries == []


def test_kernels_that_work_are_tried_once_for_all_processes(tries: list[str]) -> None:
    for _ in range(2):
        assert kernels.lays_out_weights(BuiltWithAMX())
        kernels._survives.cache_clear()  # as in another process
    assert tries == ["try"]


def test_a_note_that_was_cut_off_and_a_try_without_an_end_are_tried_again(
    tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernels.lays_out_weights(BuiltWithAMX())
    (note,) = kernels.notes().iterdir()
    note.write_text("wor")
    monkeypatch.setattr(kernels, "_TIMEOUT_S", 0.001)
    kernels._survives.cache_clear()
    assert not kernels.lays_out_weights(BuiltWithAMX())  # the safe way, and nothing is noted of it
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(note.parent.parent.parent))
    kernels._survives.cache_clear()
    assert kernels.lays_out_weights(BuiltWithAMX()) and note.read_text() == "works"
    assert len(tries) == 2


@pytest.mark.usefixtures("deadly")
def test_kernels_that_kill_are_left_out_and_that_is_told(tries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from skllm_ray.llm.gpt.clients.llama_cpp import engine

    requests = ZeroShotTask(("positive", "negative")).render(["I love it", "It is broken"])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "lays_out_weights", lambda _: True)
        usual = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
        expected = [reply.text for reply in usual.complete(requests)]
    usual.close()
    monkeypatch.setattr(engine, "import_llama_cpp", BuiltWithAMX)
    laid_out = []
    load = engine.load_model
    monkeypatch.setattr(engine, "load_model", lambda *given: laid_out.append(given[-1].use_extra_bufts) or load(*given))
    backend = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    with pytest.warns(SkllmRayWarning, match="AMX.*-U__AMX_INT8__"):
        found = [reply.text for reply in backend.complete(requests)]
    backend.close()
    assert (found, laid_out, tries) == (expected, [False], ["try"])
