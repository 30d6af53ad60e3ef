"""Which GGUF models have a name, and what is said of files that cannot work."""

from __future__ import annotations

import re
import shutil
import struct

import gguf
import pytest

from skllm_ray.config import GGUFResources
from skllm_ray.errors import ModelLoadError, UnknownModelError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import (
    DEMO_FILE,
    RECOMMENDED,
    check_file,
    check_name,
    hub_file,
    is_path,
    sha256,
    supported_models,
)
from skllm_ray.llm.gpt.clients.llama_cpp.download import local_file
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.library import set_verbose
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import memory_needed
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.tasks import ChatRequest

SIZE = DEMO_FILE.stat().st_size


def test_the_catalogue_says_where_each_file_is_and_pins_those_whose_hash_was_verified():
    downloads = {name: model for name, model in supported_models.items() if name != "demo"}
    old = {"gemma2-2b-q6", "gemma2-9b-q4", "phi3-mini-q4", "mistral0.3-7b-q4", "llama3-8b-q4"}
    assert {name for name, model in downloads.items() if model.sha256} == old
    assert len(downloads) == 17 and RECOMMENDED in downloads
    for model in downloads.values():
        assert re.fullmatch(r"[0-9a-f]{64}|", model.sha256)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo)
        assert model.file.endswith(".gguf")
        assert model.n_ctx >= 1024
        assert model.parameters and model.licence
    assert len({(model.repo, model.file) for model in downloads.values()}) == 17
    assert len({downloads[name].sha256 for name in old}) == 5


def test_known_names_pass_without_a_file():
    for name in supported_models:
        check_name(name)
    check_name("owner/repo/folder/file.gguf")


@pytest.mark.parametrize("name", ["no-such-model", "demo.gguf", "owner/file.gguf", "owner/repo/file.bin", "Demo"])
def test_an_unknown_name_is_told_what_is_known(name):
    with pytest.raises(UnknownModelError, match=rf"{re.escape(repr(name))}.*demo, gemma3-270m.*gguf::/path"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "path", "hub"),
    [
        ("owner/repo/file.gguf", False, ("owner/repo", "file.gguf")),
        ("owner/repo/a/b.gguf", False, ("owner/repo", "a/b.gguf")),
        ("/models/m.gguf", True, None),
        ("./models/x/m.gguf", True, None),
        ("../m.gguf", True, None),
        ("~/a/b/m.gguf", True, None),
        ("owner//file.gguf", False, None),
        ("demo", False, None),
    ],
)
def test_a_path_is_told_from_a_file_on_the_hub(name, path, hub):
    assert (is_path(name), hub_file(name)) == (path, hub)


def n_header_bytes():
    """Return where the tensors' table roughly lies: half-way through the metadata."""
    return SIZE // 200


def version_99(content):
    return content[:4] + struct.pack("<I", 99) + content[8:]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (None, "does not exist"),
        (lambda content: b"", "is not a GGUF file"),
        (lambda content: b"GG", "is not a GGUF file"),
        (lambda content: b"<html>not found</html>", "is not a GGUF file"),
        (lambda content: content[:4], "cannot load"),
        (lambda content: content[:9], "cannot load"),
        (lambda content: content[: n_header_bytes()], "cannot load"),
        (lambda content: content[: SIZE // 2], "cannot load"),
        (lambda content: content[:-1], "cannot load"),
        (version_99, "cannot load"),
    ],
)
def test_a_damaged_file_is_refused_and_named(tmp_path, cut, message):
    path = tmp_path / "model.gguf"
    if cut:
        path.write_bytes(cut(DEMO_FILE.read_bytes()))
    with pytest.raises(ModelLoadError, match=message) as caught:
        check_name(str(path))
    assert str(path) in str(caught.value)


def test_a_directory_is_refused_and_named(tmp_path):
    with pytest.raises(ModelLoadError, match=f"{re.escape(str(tmp_path))} is a directory"):
        check_name(str(tmp_path))


def test_a_whole_file_passes_by_relative_path_too(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    copy = tmp_path / "models" / "model.gguf"
    shutil.copyfile(DEMO_FILE, copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_file(DEMO_FILE)
    for name in ("models/model.gguf", "./models/model.gguf", "~/models/model.gguf", str(copy)):
        check_name(name)
        assert local_file(name, "unused") == copy.resolve()
    assert local_file("demo", "unused") == DEMO_FILE
    assert sha256(copy) == sha256(DEMO_FILE)


@pytest.mark.parametrize("n_ctx", [None, 256])
def test_memory_is_told_before_loading_as_llama_cpp_then_takes_it(n_ctx, capsys):
    told = memory_needed(str(DEMO_FILE), n_ctx)
    engine = Engine(EngineOptions(str(DEMO_FILE), n_ctx=n_ctx, verbose=True))
    engine.close()
    set_verbose(False)
    log = capsys.readouterr().err
    found = re.findall(r"KV buffer size = +([\d.]+) MiB", log)
    logits = re.findall(r"output buffer size = +([\d.]+) MiB", log) * 2
    assert told.logits_mb == pytest.approx(sum(map(float, logits)) * 1.048576, rel=0.01)
    (work_space,) = re.findall(r"compute buffer size = +([\d.]+) MiB", log)  # the other half of the logits are in it
    assert told.logits_mb / 2 < float(work_space) * 1.048576 < told.logits_mb
    assert told.kv_mb == pytest.approx(sum(map(float, found)) * 1.048576, rel=0.01)
    assert told.file_mb == SIZE / 1e6
    assert told.n_ctx == engine.n_ctx
    assert str(told) == (
        f"{told.file_mb:,.0f} MB of weights, {told.kv_mb:,.1f} MB of KV cache for {told.n_ctx:,} tokens, "
        f"{told.logits_mb:,.1f} MB for the logits of 256 tokens"
    )


def test_the_memory_of_a_split_model_is_that_of_all_parts(tmp_path):
    whole = DEMO_FILE.read_bytes()
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(whole)
    with pytest.raises(ModelLoadError, match=r"m-00002-of-00002\.gguf is missing"):
        memory_needed(str(first))
    second.write_bytes(whole[:1000])
    assert memory_needed(str(first)).file_mb == (SIZE + 1000) / 1e6


def test_the_context_is_as_long_as_was_asked_for():
    spec = GGUFSpec("demo", n_threads=1, resources=GGUFResources(n_ctx=256))
    backend = spec.open(no_secret)
    try:
        assert backend.n_ctx == 256
        (reply,) = backend.complete([ChatRequest(({"role": "user", "content": "word " * 300},))])
        assert "context of 256" in reply.error.message
    finally:
        backend.close()


def test_a_context_longer_than_the_model_was_trained_for_is_refused():
    spec = GGUFSpec("demo", n_threads=1, resources=GGUFResources(n_ctx=1 << 20))
    with pytest.raises(ModelLoadError, match=r"^n_ctx=1,048,576, but the model was trained for 1,024 tokens"):
        spec.open(no_secret)


def no_secret(reference):
    raise AssertionError(reference)


def test_grouped_heads_and_their_own_sizes_are_counted(tmp_path):
    path = tmp_path / "model.gguf"
    source = gguf.GGUFReader(DEMO_FILE)
    writer = gguf.GGUFWriter(str(path), "gemma2")
    writer.add_block_count(3)
    writer.add_context_length(100_000)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    for key, add in (("tokens", writer.add_token_list), ("merges", writer.add_token_merges)):
        add(source.fields[f"tokenizer.ggml.{key}"].contents())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    told = memory_needed(str(path))
    assert told.n_ctx == 8192
    assert told.kv_mb == 2 * 8192 * 3 * 2 * (32 + 16) / 1e6
