"""Downloads from a local server that speaks the hub's protocol, by the real huggingface-hub, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE, check_file
from skllm_ray.llm.gpt.clients.llama_cpp.download import file_if_here
from tests.cluster.scripts import environment
from tests.hub import Hub

CONTENT = DEMO_FILE.read_bytes()
SPLIT = [f"big-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
SCRIPT = """
import json, sys
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.tasks import ZeroShotTask
for _ in range(int(sys.argv[3])):
    try:
        backend = GGUFSpec("owner/repo/" + sys.argv[2], download_path=sys.argv[1]).open(None)
        (reply,) = backend.complete(ZeroShotTask(("positive", "negative")).render(["I love it"]))
        backend.close()
        print(json.dumps({"text": reply.text}))
    except ModelLoadError as error:
        print(json.dumps({"error": str(error)}))
"""


def start(hub: Hub, folder: Path, file: str = "model.gguf", times: int = 1, **extra: str) -> subprocess.Popen[str]:
    """Start a process that loads a model and asks it, as often as `times` says."""
    variables = environment(HF_ENDPOINT=hub.url, HF_HOME=str(folder / "home"), HF_HUB_DISABLE_XET="1", **extra)
    command = [sys.executable, "-c", SCRIPT, str(folder / "models"), file, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert [line for line in err.splitlines() if "resume" not in line and "closed connection" not in line] == []
    found: dict[str, str] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.deep
def test_a_cut_download_goes_on_where_it_was_cut(tmp_path):
    large = CONTENT + bytes(40_000_000)  # huggingface-hub keeps what it has in steps of 10 MiB
    with Hub(large, cut_after=15_000_000, n_cuts=2) as hub:
        found = finish(start(hub, tmp_path, times=2))  # the second time from the disk
        assert json.loads(found["text"]) == {"label": "positive"}
        assert hub.ranges[0] is None and len(hub.ranges) == 3
        assert all(later.startswith("bytes=") for later in hub.ranges[1:])
        assert hub.n_bytes < 1.3 * len(large)
        assert "text" in finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))


@pytest.mark.deep
def test_two_processes_download_once(tmp_path):
    with Hub(CONTENT) as hub:
        both = [start(hub, tmp_path), start(hub, tmp_path)]
        assert all("text" in finish(process) for process in both)
        assert len(hub.ranges) == 1


def test_a_damaged_file_is_named_and_not_loaded(tmp_path):
    damaged = CONTENT[:2_000_000] + b"\0" * 100 + CONTENT[2_000_100:]
    with Hub(CONTENT, served=damaged) as hub:
        error = finish(start(hub, tmp_path))["error"]
    assert str(tmp_path / "models" / "owner" / "repo" / "model.gguf") in error
    assert "damaged" in error and "SHA-256" in error


@pytest.mark.parametrize(("token", "word"), [("hf_right", "text"), ("hf_wrong", "HF_TOKEN")])
def test_a_private_file_needs_its_token(tmp_path, token, word):
    with Hub(CONTENT, token="hf_right") as hub:
        found = finish(start(hub, tmp_path, HF_TOKEN=token))
    assert word in found or word in found["error"]
    assert token not in json.dumps(found)


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    with Hub(CONTENT) as hub:
        error = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"))["error"]
        assert "owner/repo/model.gguf could not be downloaded" in error
        assert hub.ranges == []


@pytest.fixture(scope="module")
def split_model(tmp_path_factory) -> dict[str, bytes]:
    """The demo model in three files, as llama.cpp's own tool cuts large models."""
    folder = tmp_path_factory.mktemp("split")
    source = gguf.GGUFReader(DEMO_FILE)
    writer = gguf.GGUFWriter(str(folder / "big.gguf"), "llama", split_max_tensors=-(-len(source.tensors) // 3))
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], kind)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("named", [0, 2])
def test_all_parts_of_a_split_model_are_fetched_whichever_is_named(tmp_path, split_model, named):
    assert list(split_model) == SPLIT
    with Hub(parts=split_model) as hub:
        assert "text" in finish(start(hub, tmp_path, SPLIT[named], times=2))  # the second time from the disk
        assert len(hub.ranges) == 3
    folder = tmp_path / "models" / "owner" / "repo"
    assert file_if_here(f"owner/repo/{SPLIT[1]}", str(tmp_path / "models")) == folder / SPLIT[0]
    with pytest.raises(ModelLoadError, match=f"is a part of a split model.*Name its first part: .*{SPLIT[0]}"):
        check_file(folder / SPLIT[1])
    (folder / SPLIT[1]).unlink()
    assert file_if_here(f"owner/repo/{SPLIT[0]}", str(tmp_path / "models")) is None
    with pytest.raises(ModelLoadError, match=f"first of 3 parts, and {SPLIT[1]} is missing beside it"):
        check_file(folder / SPLIT[0])


def test_a_file_that_the_repository_lacks_is_answered_with_those_that_it_has(tmp_path, split_model):
    with Hub(parts={**split_model, "model.gguf": CONTENT, "readme.md": b""}) as hub:
        error = finish(start(hub, tmp_path, "modell.gguf"))["error"]
    assert "owner/repo on the hub has no file modell.gguf" in error
    assert f"Its GGUF files: {SPLIT[0]}, model.gguf." in error
