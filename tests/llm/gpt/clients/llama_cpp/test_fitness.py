"""Files that are no models for this library, or kill llama.cpp, cost an error that says why."""

from __future__ import annotations

import subprocess
import sys

import gguf
import pytest
from ray.exceptions import ActorDiedError

from benchmarks.random_weights import write_model
from skllm_ray.errors import ModelLoadError
from skllm_ray.execution.last_words import why_given_up, why_not_loaded
from skllm_ray.llm.gpt.clients.llama_cpp import trial
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE, check_file
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.fitness import refusal
from skllm_ray.llm.gpt.clients.llama_cpp.words import death_hint, last_words, sentence
from skllm_ray.testing import FakeSpec

TINY = {
    "context_length": 256,
    "embedding_length": 32,
    "block_count": 1,
    "feed_forward_length": 64,
    "attention.head_count": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 16,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", TINY)


@pytest.fixture(autouse=True)
def _own_notes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_passed", set())


def changed(source, path, architecture="llama", **values):
    """Write a file with other metadata."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(str(path), architecture)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")) and key not in values:
            kind = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], kind)
    for key, value in values.items():
        {int: writer.add_uint32, str: writer.add_string, float: writer.add_float32}[type(value)](key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


UNFIT = {
    "no heads": ({"llama.attention.head_count": 0}, "attention heads is 0"),
    "no context": ({"llama.context_length": 0}, "length of its context is 0"),
    "no layers": ({"llama.block_count": 0}, "layers is 0"),
    "no vocabulary": ({"tokenizer.ggml.model": "no_vocab"}, "vocabulary is 0"),
    "a reranker": ({"llama.pooling_type": 4}, "is a reranker"),
    "an adapter": ({"general.type": "adapter", "adapter.type": "lora"}, r"LoRA adapter.*Merge it into its base model"),
    "a projector": ({"architecture": "clip"}, r"projector \(mmproj\).*language model's own file"),
    "a diffusion model": ({"architecture": "dream"}, "is a diffusion model"),
    "another": ({"architecture": "llada"}, "is a diffusion model"),
    "an encoder and a decoder": ({"architecture": "t5"}, "has an encoder.*decoder-only"),
    "an unknown kind": ({"architecture": "none"}, "unknown model architecture: 'none'.*newer llama-cpp-python"),
    "an assertion": (
        {"llama.expert_count": 4, "llama.expert_used_count": 9},
        r"llama.cpp dies of .*GGML_ASSERT\(n_expert_used_max <= hparams.n_expert\) failed \(SIGABRT\)\. It was tried",
    ),
    "one in a decode": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, r"GGML_ASSERT\(eps >= 0.0f\)"),
    "no numbers": ({"llama.rope.freq_base": 0.0}, "logits that are no numbers"),
}


@pytest.mark.parametrize(("values", "why"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_is_of_no_use_is_refused_with_the_reason_and_this_process_lives(tiny, tmp_path, values, why):
    path = changed(tiny, tmp_path / "model.gguf", **values)
    with pytest.raises(ModelLoadError, match=why) as error:
        check_file(path)
    assert ("download it again" in str(error.value)) <= ("no numbers" in why)


def test_a_failure_is_not_remembered(tiny, tmp_path):
    """The next llama-cpp-python, or the next copy, may do."""
    path = changed(tiny, tmp_path / "model.gguf", **UNFIT["an assertion"][0])
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="GGML_ASSERT"):
            check_file(path)


@pytest.mark.deep
def test_an_abort_in_a_notebook_is_an_error_of_the_estimator(tiny, tmp_path):
    path = changed(tiny, tmp_path / "model.gguf", **UNFIT["an assertion"][0])
    script = f"""
import skllm_ray
from skllm_ray.errors import ModelLoadError
from skllm_ray.execution.last_words import why_given_up, why_not_loaded
from skllm_ray.classification import ZeroShotGPTClassifier
skllm_ray.init(local_mode=True)
try:
    ZeroShotGPTClassifier(model="gguf::{path}").fit(None, ["a", "b"]).predict(["x"])
except ModelLoadError as error:
    assert "GGML_ASSERT" in str(error), error
    raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 7


def test_a_file_is_tried_once_until_it_changes(tiny, tmp_path, monkeypatch):
    path = changed(tiny, tmp_path / "model.gguf", **{"general.name": "one"})
    tried = []
    monkeypatch.setattr(trial, "_try", tried.append)
    for _ in range(2):
        check_file(path)
        trial._passed.clear()  # another process
    assert len(tried) == 1
    changed(tiny, path, **{"general.name": "another"})
    check_file(path)
    assert len(tried) == 2
    check_file(DEMO_FILE)
    assert len(tried) == 2


def test_a_file_that_cannot_be_tried_is_loaded_all_the_same(tiny, monkeypatch, tmp_path, caplog):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('no llama_cpp here')")
    monkeypatch.setattr(trial, "SCRIPT", broken)
    check_file(tiny)
    assert "could not be tried: ImportError: no llama_cpp here" in caplog.text


@pytest.mark.parametrize(
    ("facts", "why"),
    [({"is_diffusion": True}, "diffusion"), ({"has_encoder": True}, "encoder"), ({"n_tensors": 0}, "no weights")],
)
def test_what_llama_cpp_says_of_a_model_is_judged(facts, why):
    assert why in str(refusal("model.gguf", facts))
    assert refusal("model.gguf", {"n_tensors": 0, "split.count": 2}) is None


def test_an_engine_refuses_by_itself(tiny, tmp_path):
    with pytest.raises(ModelLoadError, match="reranker"):
        Engine(EngineOptions(str(changed(tiny, tmp_path / "model.gguf", **{"llama.pooling_type": 4}))))


def test_last_words_are_those_that_tell():
    said = "loading\n/a/b.cpp:3: GGML_ASSERT(x) failed\n[New LWP 7]\n#0  0x0000 in wait4 ()\n"
    assert last_words(said) == "b.cpp:3: GGML_ASSERT(x) failed"
    assert last_words("one\ntwo\n#1 0x1\n") == "one two"
    assert last_words("") == ""


def test_a_process_that_dies_of_an_instruction_is_no_fault_of_the_file():
    """The build is at fault; the doctor tells what mends it."""
    for words in ("Fatal Python error: Illegal instruction", "it leaves no words SIGILL"):
        assert "skllm-ray doctor" in death_hint(words)
    assert "conversion" in death_hint("GGML_ASSERT(x) failed")
    spec, words = FakeSpec(lambda request: ""), "Fatal Python error: Illegal instruction"
    for error in (why_not_loaded(spec, ActorDiedError(), words), why_given_up(spec, 40, words)):
        assert f"Its last words: {words}. This llama.cpp was not built" in str(error)
    assert sentence("") == ""
