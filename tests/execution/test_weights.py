"""A model's files from node to node: two folders, and pieces that come as an actor would give them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from skllm_ray.errors import ModelLoadError
from skllm_ray.execution import weights
from skllm_ray.execution.weights import Files
from skllm_ray.llm.gpt.clients.llama_cpp import download
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE

NAME, FILE = "owner/repo/model.gguf", "owner/repo/model.gguf"
CONTENT = DEMO_FILE.read_bytes()


class Remote:
    """A method of an actor on another node, which dies after some calls."""

    def __init__(self, source: Source, method: Any) -> None:
        self.source, self.method = source, method

    def options(self, **_: Any) -> Remote:
        return self

    def remote(self, *args: Any) -> Any:
        def answer() -> Any:
            self.source.left -= 1
            if self.source.left < 0:
                raise ActorDiedError
            self.source.asked.append(args)
            return self.method(*args)

        return answer


class Source:
    def __init__(self, files: Files, calls: int = 10_000) -> None:
        self.left, self.asked = calls, list[Any]()
        self.state, self.piece = Remote(self, files.state), Remote(self, files.piece)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders of two nodes; the first has the file."""
    monkeypatch.setattr(weights, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(weights.ray, "get", lambda answer, timeout=None: answer())
    monkeypatch.setattr(weights.ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr(weights.time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "check_file", lambda path: None)
    first, second = tmp_path / "a", tmp_path / "b"
    (first / FILE).parent.mkdir(parents=True)
    (first / FILE).write_bytes(CONTENT)
    download._verify(first / FILE, hashlib.sha256(CONTENT).hexdigest())
    return first, second


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Downloads from the hub: what was asked of it."""
    asked: list[str] = []

    def fetch(repo: str, file: str, folder: Path) -> Path:
        asked.append(file)
        (folder / repo / file).write_bytes(CONTENT)
        return folder / repo / file

    monkeypatch.setattr(download, "_download", fetch)
    return asked


def fail(*_: Any) -> Path:
    raise ModelLoadError("the hub has no such file")


def files(folder: Path) -> Files:
    return Files(NAME, str(folder))


def test_a_file_is_copied_checked_and_the_hub_is_not_asked(folders: tuple[Path, Path], hub: list[str]) -> None:
    first, second = folders
    found = files(second).fetch(Source(files(first)))
    assert (found.source, hub) == ("a node", [])
    assert (second / FILE).read_bytes() == CONTENT
    assert files(second).state(FILE) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert files(second).fetch(None).source == "here"


def test_a_copy_that_breaks_off_goes_on_where_it_was(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folders
    monkeypatch.setattr(download, "_download", fail)
    with pytest.raises(ModelLoadError):  # where the other node dies, the hub is asked
        files(second).fetch(Source(files(first), calls=1 + 4))
    again = Source(files(first))
    assert files(second).fetch(again).source == "a node"
    starts = [args[1] for args in again.asked if len(args) == 2]
    assert starts[0] == 400_000  # behind the pieces that were there
    assert (second / FILE).read_bytes() == CONTENT


def test_nothing_is_left_behind_where_the_hub_gives_the_file_in_the_end(
    folders: tuple[Path, Path], hub: list[str]
) -> None:
    first, second = folders
    files(second).fetch(Source(files(first), calls=1 + 4))
    assert hub == ["model.gguf"]
    assert sorted(path.name for path in (second / FILE).parent.glob("*.gguf*")) == ["model.gguf"]


def test_a_damaged_copy_is_thrown_away(
    folders: tuple[Path, Path], hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folders
    source = Source(files(first))
    source.piece.method = lambda file, start: b"\0" * 100_000
    files(second).fetch(source)
    assert hub == ["model.gguf"]
    assert (second / FILE).read_bytes() == CONTENT
    assert not (second / f"{FILE}.copied").exists()


def test_what_the_other_node_is_still_getting_is_waited_for(folders: tuple[Path, Path], hub: list[str]) -> None:
    first, second = folders
    states = iter(["coming", "coming"])
    source = Source(files(first))
    source.state.method = lambda file: next(states, None) or files(first).state(file)
    assert files(second).fetch(source).source == "a node"
    source.state.method = lambda file: "failed"
    (second / FILE).unlink()
    assert files(second).fetch(source).source == "the hub"


def test_a_shared_file_system_is_not_copied_from(folders: tuple[Path, Path], hub: list[str]) -> None:
    """The first node's file appears where the second looks for its own."""
    first, _ = folders
    note = first / f"{FILE}.sha256-checked"
    text = note.read_text()
    note.unlink()  # still on its way

    def appears(file: str) -> str:
        note.write_text(text)
        return "coming"

    source = Source(files(first))
    source.state.method = appears
    found = files(first).fetch(source)
    assert (found.source, hub) == ("here", [])
    assert all(len(args) == 1 for args in source.asked)


def test_a_failure_is_told_to_those_that_wait(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_download", fail)
    held = files(folders[1])
    assert held.state(FILE) == "coming"
    with pytest.raises(ModelLoadError):
        held.fetch(None)
    assert held.state(FILE) == "failed"


def test_a_file_of_a_hub_that_tells_no_hash_is_copied_all_the_same(folders: tuple[Path, Path], hub: list[str]) -> None:
    first, second = folders
    (first / f"{FILE}.sha256-checked").unlink()
    held = files(first)
    assert held.fetch(None).source == "the hub"
    assert files(second).fetch(Source(held)).source == "a node"
