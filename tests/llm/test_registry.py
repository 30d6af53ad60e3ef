"""From a model's name to its spec, under the settings of this process."""

from __future__ import annotations

import pickle
import warnings

import pytest

from skllm_ray.config import GGUFResources, RateLimit, Secret, SKLLMConfig, resolve_secret
from skllm_ray.errors import ConfigurationError, MissingKeyError, SkllmRayWarning, UnknownModelError
from skllm_ray.llm.base import is_stateful
from skllm_ray.llm.credentials import secrets_of
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.registry import resolve
from skllm_ray.llm.vertex.spec import VertexSpec

KEY = "sk-planted-0123456789abcdef"


@pytest.mark.parametrize(
    ("model", "family", "kind", "name", "api"),
    [
        ("gpt-x", "gpt", OpenAISpec, "gpt-x", "openai"),
        ("openai::gpt-x", "gpt", OpenAISpec, "gpt-x", "openai"),
        ("azure::my-deployment", "gpt", OpenAISpec, "my-deployment", "azure"),
        ("custom_url::llama3:8b", "gpt", OpenAISpec, "llama3:8b", "custom_url"),
        ("custom_url:: org/a::b ", "gpt", OpenAISpec, "org/a::b", "custom_url"),
        ("gguf::demo", "gpt", GGUFSpec, "gguf::demo", None),
        ("ft:gpt-4o-mini:org::id", "gpt", OpenAISpec, "ft:gpt-4o-mini:org::id", "openai"),
        ("ft:gpt-4o-mini:org:topics:id", "gpt", OpenAISpec, "ft:gpt-4o-mini:org:topics:id", "openai"),
        ("openai::/served/as/a/path", "gpt", OpenAISpec, "/served/as/a/path", "openai"),
        ("gemini-x", "vertex", VertexSpec, "gemini-x", None),
        ("vertex::gemini-x", "vertex", VertexSpec, "gemini-x", None),
    ],
)
def test_a_namespace_picks_the_backend(model, family, kind, name, api):
    spec = resolve(model, family=family)
    assert (type(spec), spec.model, getattr(spec, "api", None)) == (kind, name, api)
    assert pickle.loads(pickle.dumps(spec)).key == resolve(model, family=family).key == spec.key


@pytest.mark.parametrize(
    ("model", "family", "error", "message"),
    [
        ("nope::x", "gpt", UnknownModelError, r"'nope'.*openai::, azure::, custom_url::, gguf::"),
        ("vertex::x", "gpt", UnknownModelError, "'vertex'"),
        ("gguf::demo", "vertex", UnknownModelError, "'gguf'.*vertex::"),
        ("::x", "gpt", UnknownModelError, "''"),
        ("", "gpt", UnknownModelError, "names no model"),
        ("azure::", "gpt", UnknownModelError, "azure::<name>"),
        ("gguf::  ", "gpt", UnknownModelError, "gguf::<name>"),
        ("gguf:/models/a.gguf", "gpt", UnknownModelError, "Write model='gguf::/models/a.gguf'"),
        ("gguf:///models/a.gguf", "gpt", UnknownModelError, "Write model='gguf::/models/a.gguf'"),
        ("GGUF:demo", "gpt", UnknownModelError, "Write model='gguf::demo'"),
        ("custom_url:llama3:8b", "gpt", UnknownModelError, "Write model='custom_url::llama3:8b'"),
        ("gguf:demo", "vertex", UnknownModelError, "two colons"),
        ("/models/a", "gpt", UnknownModelError, "model='gguf::/models/a'"),
        ("~/a.gguf", "gpt", UnknownModelError, "model='gguf::~/a.gguf'"),
        ("owner/repo/a.Q4_K_M.GGUF", "gpt", UnknownModelError, "model='gguf::owner/repo/a.Q4_K_M.GGUF'"),
        ("file:///models/a.gguf", "gpt", UnknownModelError, "model='gguf::/models/a.gguf'"),
        ("C:\\models\\a", "gpt", UnknownModelError, "is a file's name"),
        ("./a.gguf", "vertex", UnknownModelError, "is a file's name"),
        (None, "gpt", ConfigurationError, "model must be a str; got NoneType"),
        (7, "gpt", ConfigurationError, "got int"),
    ],
)
def test_what_names_no_model_is_refused(model, family, error, message):
    with pytest.raises(error, match=message):
        resolve(model, family=family)


def test_a_server_behind_openais_variable_calls_its_models_what_it_likes(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert resolve("/models/a.gguf").model == "/models/a.gguf"


def test_an_openai_model_with_a_custom_url_set_is_warned_about():
    SKLLMConfig.set_gpt_url("http://localhost:1/v1")
    with pytest.warns(SkllmRayWarning, match=r"custom_url::gpt-x.*reset_gpt_url") as caught:
        spec = resolve("gpt-x")
    assert [one.filename for one in caught] == [__file__]
    assert spec.base_url is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("custom_url::gpt-x").base_url == "http://localhost:1/v1"
        SKLLMConfig.set_azure_api_base("https://a")
        assert resolve("azure::d").base_url == "https://a"
        SKLLMConfig.reset_gpt_url()
        resolve("gpt-x")


def key_sent(spec):
    try:
        return resolve_secret(spec.key_ref, {})
    except MissingKeyError:
        return None


def test_a_custom_url_never_receives_the_standard_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    SKLLMConfig.set_gpt_url("http://localhost:1/v1")
    spec = resolve("custom_url::m")
    spec.check()
    assert "OPENAI_API_KEY" not in spec.key_ref.env
    assert (spec.key_ref.fingerprint, key_sent(spec)) == ("", None)
    assert key_sent(resolve("azure::m")) == KEY
    SKLLMConfig.reset_gpt_url()
    assert key_sent(resolve("m")) == KEY
    SKLLMConfig.set_openai_key("sk-for-this-library")
    assert key_sent(resolve("custom_url::m")) == "sk-for-this-library"


@pytest.mark.parametrize("org", ["org-1\norg-2", "org-…", "org 1"])
def test_an_organisation_that_no_request_can_carry_is_refused_before_any(org):
    with pytest.raises(ConfigurationError, match="org holds"):
        resolve("gpt-x", key=KEY, org=org)
    with pytest.raises(ConfigurationError, match="org holds"):
        SKLLMConfig.set_openai_org(org)


def test_a_spec_names_the_key_and_never_holds_it():
    SKLLMConfig.set_openai_key("sk-of-the-settings")
    spec = resolve("m", key=KEY, org="org-1")
    assert spec.key_ref.fingerprint == Secret(KEY).fingerprint
    assert spec.org == "org-1"
    assert "sk-" not in repr(spec) + spec.key + pickle.dumps(spec, 0).decode("latin-1")
    assert resolve("m").key_ref.fingerprint == Secret("sk-of-the-settings").fingerprint
    assert resolve("m").key != spec.key
    assert secrets_of(KEY) == {Secret(KEY).fingerprint: KEY, resolve("m").key_ref.fingerprint: "sk-of-the-settings"}


def test_a_key_left_behind_in_a_pickle_is_looked_up_again():
    lost = pickle.loads(pickle.dumps(Secret(KEY)))
    assert secrets_of(lost) == {}
    SKLLMConfig.set_openai_key("sk-here")
    assert secrets_of(lost) == {Secret("sk-here").fingerprint: "sk-here"}
    assert resolve("m", key=lost).key_ref.fingerprint == Secret("sk-here").fingerprint


def test_a_worker_may_know_the_key_that_was_left_behind(monkeypatch, caplog):
    lost = pickle.loads(pickle.dumps(Secret(KEY)))
    reference = resolve("m", key=lost).key_ref
    assert reference.fingerprint == lost.fingerprint
    assert resolve_secret(reference, {lost.fingerprint: KEY}) == KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert resolve_secret(reference) == KEY
    assert not caplog.records
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-node")
    assert resolve_secret(reference) == "sk-of-the-node"
    assert "another one here" in caplog.text
    assert "sk-" not in caplog.text


def test_gguf_takes_no_request_options():
    with pytest.raises(ConfigurationError, match=r"^request_options=\{'top_p': 1\}"):
        resolve("gguf::demo", request_options={"top_p": 1})
    assert resolve("gguf::demo", request_options={}) == resolve("gguf::demo", key="k", org="o")


def test_gguf_settings_travel_in_the_spec():
    SKLLMConfig.set_gguf_resources("gguf::demo", min_replicas=2, num_cpus=3)
    SKLLMConfig.set_gguf_max_gpu_layers(-1)
    spec = resolve("gguf::demo")
    assert spec.resources == GGUFResources(min_replicas=2, num_cpus=3)
    placement = spec.placement
    assert (placement.num_cpus, placement.num_gpus, placement.min_replicas) == (3, 1, 2)
    assert is_stateful(spec)
    SKLLMConfig.set_gguf_max_gpu_layers(0)
    assert resolve("gguf::demo").placement.num_gpus == 0
    SKLLMConfig.set_gguf_resources(placement_timeout_s=600)
    assert resolve("gguf::other").placement.placement_timeout_s == 600
    assert resolve("gguf::other").resources == GGUFResources()  # patience is no reason to load a model anew


def test_a_gguf_file_keeps_its_path_when_the_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").touch()
    given = ["./models/m.gguf", "models/m.gguf", "../gone.gguf", "demo", "owner/repo/file.gguf"]
    SKLLMConfig.set_gguf_resources(given[0], num_cpus=3)
    specs = [resolve(f"gguf::{name}") for name in given]
    here = f"{tmp_path}/models/m.gguf"
    assert [spec.name for spec in specs] == [here, here, f"{tmp_path}/../gone.gguf", "demo", "owner/repo/file.gguf"]
    assert specs[0].placement.num_cpus == 3
    assert specs[0].key == specs[1].key == f"gguf::{here}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("gguf::~/models/m.gguf").key == specs[0].key


@pytest.mark.parametrize(
    ("declared", "used", "family"),
    [
        ("m", "m", "gpt"),
        ("m", "openai::m", "gpt"),
        ("openai::m", "m", "gpt"),
        ("openai::m", "openai::m", "gpt"),
        ("azure::m", "azure::m", "gpt"),
        ("custom_url::m", "custom_url::m", "gpt"),
        ("m", "m", "vertex"),
        ("vertex::m", "vertex::m", "vertex"),
    ],
)
def test_a_limit_is_found_by_the_models_name(declared, used, family):
    SKLLMConfig.set_rate_limit(declared, max_concurrency=2)
    SKLLMConfig.set_rate_limit("other", max_concurrency=9)
    assert resolve(used, family=family).limit == RateLimit(max_concurrency=2)


@pytest.mark.parametrize("used", ["azure::m", "custom_url::m", "m2"])
def test_a_limit_of_another_backend_does_not_count(used):
    SKLLMConfig.set_rate_limit("m", max_concurrency=2)
    assert resolve(used).limit is None


@pytest.mark.parametrize(
    ("model", "family", "error", "message"),
    [
        ("azure::d", "gpt", ConfigurationError, "set_azure_api_base"),
        ("custom_url::m", "gpt", ConfigurationError, "set_gpt_url"),
        ("m", "gpt", MissingKeyError, "set_openai_key"),
        ("m", "vertex", ConfigurationError, "set_google_project"),
        ("gguf::no-such-model", "gpt", UnknownModelError, "no-such-model"),
    ],
)
def test_what_is_not_set_is_said_before_anything_starts(model, family, error, message):
    spec = resolve(model, family=family)
    with pytest.raises(error, match=message):
        spec.check()


def test_with_its_settings_azure_is_ready():
    SKLLMConfig.set_azure_api_base("https://name.openai.azure.com/")
    SKLLMConfig.set_openai_key(KEY)
    spec = resolve("azure::d")
    spec.check()
    assert (spec.base_url, spec.api_version) == ("https://name.openai.azure.com", "2024-10-21")


def test_a_key_may_lie_in_a_file(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY_FILE", str(tmp_path / "key"))
    spec = resolve("m")
    spec.check()
    assert key_sent(spec) == KEY
    assert SKLLMConfig.get_openai_key().reveal() == KEY
    monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(MissingKeyError, match=r"SKLLM_CONFIG_OPENAI_KEY_FILE=.*none cannot be read: FileNotFoundError"):
        resolve("m")


def test_a_function_on_the_worker_may_give_the_key(monkeypatch, tmp_path):
    (tmp_path / "company_vault.py").write_text(
        f"def get(name): return {{'openai_key': {KEY!r}}}[name]\n"
        f"def number(name): return 7\n"
        f"def fails(name): raise ValueError({KEY!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    SKLLMConfig.set_secret_resolver("company_vault:get")
    spec = resolve("m")
    spec.check()  # the driver need not know it
    SKLLMConfig.reset()
    assert key_sent(pickle.loads(pickle.dumps(spec))) == KEY
    assert KEY not in repr(spec)
    for function, message in {
        "company_vault:number": "gave a int for openai_key",
        "company_vault:fails": "failed for openai_key: ValueError",
        "company_vault:missing": "failed for openai_key: AttributeError",
        "no_such_module:get": "failed for openai_key: ModuleNotFoundError",
    }.items():
        SKLLMConfig.set_secret_resolver(function)
        with pytest.raises(MissingKeyError, match=message) as caught:
            resolve_secret(resolve("m").key_ref)
        assert KEY not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"package\.module:function"):
        SKLLMConfig.set_secret_resolver("not a function")


def test_the_reply_cache_travels_in_the_spec(tmp_path):
    SKLLMConfig.set_reply_cache(tmp_path / "c", max_bytes=200_000)
    for spec in (resolve("custom_url::m"), resolve("m", family="vertex")):
        assert (spec.reply_cache, spec.reply_cache_max_bytes) == (str(tmp_path / "c"), 200_000)


@pytest.mark.parametrize("options", ["abc", [("a", 1)], 7, {1, 2}])
@pytest.mark.parametrize("model", ["m", "custom_url::m", "gguf::demo"])
def test_request_options_are_a_mapping(model, options):
    with pytest.raises(ConfigurationError, match="request_options must be a dict or None; got"):
        resolve(model, request_options=options)
