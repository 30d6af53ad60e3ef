"""Settings: where they come from, what they refuse, and what they never show."""

from __future__ import annotations

import copy
import io
import json
import logging
import operator
import os
import pickle
import pprint
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from skllm_ray.config import GGUFResources, RateLimit, Secret, SecretRef, SKLLMConfig, Timeouts, resolve_secret
from skllm_ray.errors import ConfigurationError, MissingKeyError
from skllm_ray.llm.registry import resolve

KEY = "sk-planted-0123456789abcdef"
TEXTS = [
    # setting, environment variable, default
    ("openai_key", "SKLLM_CONFIG_OPENAI_KEY", None),
    ("openai_org", "SKLLM_CONFIG_OPENAI_ORG", None),
    ("gpt_key", "SKLLM_CONFIG_OPENAI_KEY", None),
    ("gpt_org", "SKLLM_CONFIG_OPENAI_ORG", None),
    ("azure_api_base", "SKLLM_CONFIG_AZURE_API_BASE", None),
    ("azure_api_version", "SKLLM_CONFIG_AZURE_API_VERSION", "2024-10-21"),
    ("google_project", "GOOGLE_CLOUD_PROJECT", None),
    ("google_location", "GOOGLE_CLOUD_LOCATION", "global"),
    ("gpt_url", "SKLLM_CONFIG_GPT_URL", None),
    ("gguf_download_path", "SKLLM_CONFIG_GGUF_DOWNLOAD_PATH", str(Path("~/.skllm/gguf").expanduser())),
]


def setter(name):
    return getattr(SKLLMConfig, f"set_{name}")


def getter(name):
    value = getattr(SKLLMConfig, f"get_{name}")()
    return value.reveal() if isinstance(value, Secret) else value


@pytest.mark.parametrize(("name", "env", "default"), TEXTS)
def test_what_was_set_wins_over_the_environment_and_that_over_the_default(monkeypatch, name, env, default):
    assert getter(name) == default
    in_env, given = ("/from/env", "/from/set") if name.endswith("path") else ("http://from-env", "http://from-set")
    monkeypatch.setenv(env, in_env)
    assert getter(name) == in_env
    setter(name)(given)
    assert getter(name) == given
    monkeypatch.setenv(env, "")
    SKLLMConfig.reset()
    assert getter(name) == default


@pytest.mark.parametrize(
    ("name", "env", "in_env", "expected", "given", "default"),
    [
        ("gguf_max_gpu_layers", "SKLLM_CONFIG_GGUF_MAX_GPU_LAYERS", "-1", -1, 0, 0),
        ("gguf_verbose", "SKLLM_CONFIG_GGUF_VERBOSE", "True", True, False, False),
        ("gguf_verbose", "SKLLM_CONFIG_GGUF_VERBOSE", "1", True, False, False),
        ("show_progress", "SKLLM_CONFIG_SHOW_PROGRESS", "off", False, True, True),
    ],
)
def test_numbers_and_flags_follow_the_same_order(monkeypatch, name, env, in_env, expected, given, default):
    assert getter(name) is default or getter(name) == default
    monkeypatch.setenv(env, in_env)
    assert getter(name) == expected
    setter(name)(given)
    assert getter(name) == given


@pytest.mark.parametrize(
    ("name", "env", "in_env"),
    [
        ("gguf_max_gpu_layers", "SKLLM_CONFIG_GGUF_MAX_GPU_LAYERS", "many"),
        ("gguf_verbose", "SKLLM_CONFIG_GGUF_VERBOSE", "maybe"),
        ("show_progress", "SKLLM_CONFIG_SHOW_PROGRESS", "2"),
    ],
)
def test_a_bad_environment_variable_is_named_by_its_setting(monkeypatch, name, env, in_env):
    monkeypatch.setenv(env, in_env)
    with pytest.raises(ConfigurationError, match=f"{name}.*{in_env}"):
        getter(name)


@pytest.mark.parametrize("value", ["", "  ", None, 7])
@pytest.mark.parametrize("name", [name for name, _, _ in TEXTS if name != "gguf_download_path"])
def test_a_text_setting_refuses_what_is_no_text_and_names_itself(name, value):
    shown = {"openai_key": "key", "gpt_key": "key", "openai_org": "org", "gpt_org": "org"}.get(name, name)
    with pytest.raises(ConfigurationError, match=f"^{shown} must be"):
        setter(name)(value)


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://x", "http://", "just words"])
@pytest.mark.parametrize("name", ["gpt_url", "azure_api_base"])
def test_a_url_must_be_one(name, url):
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a URL that begins with http"):
        setter(name)(url)


@pytest.mark.parametrize("name", ["gpt_url", "azure_api_base"])
def test_a_url_holds_no_credential(name):
    with pytest.raises(ConfigurationError, match=name) as caught:
        setter(name)(f"https://me:{KEY}@host/v1")
    assert KEY not in str(caught.value) + repr(SKLLMConfig)


@pytest.mark.parametrize("name", ["gpt_url", "azure_api_base"])
@pytest.mark.parametrize(
    "url",
    [
        f"https://host/v1?api-key={KEY}",
        f"https://host/v1#{KEY}",
        f"https://{KEY}@host/v1",
        f"me:{KEY}@host/v1",
        f"host/v1?api-key={KEY}",
        f"ftp://host/?{KEY}",
    ],
)
def test_an_address_holds_no_secret_and_is_not_repeated(monkeypatch, name, url):
    with pytest.raises(ConfigurationError, match=f"^{name} must be the address alone.*set_openai_key") as caught:
        setter(name)(url)
    monkeypatch.setenv(f"SKLLM_CONFIG_{name.upper()}", url)
    with pytest.raises(ConfigurationError, match=name) as in_env:
        getter(name)
    assert KEY not in str(caught.value) + str(in_env.value) + repr(SKLLMConfig)
    setter(name)("https://host/v1/@names/a")


def test_urls_lose_their_last_slash_and_can_be_reset():
    SKLLMConfig.set_gpt_url(" http://localhost:11434/v1/ ")
    assert SKLLMConfig.get_gpt_url() == "http://localhost:11434/v1"
    SKLLMConfig.reset_gpt_url()
    assert SKLLMConfig.get_gpt_url() is None


@pytest.mark.parametrize("layers", [-2, 1.5, True, "x", None])
def test_gpu_layers_are_an_int_from_minus_one(layers):
    with pytest.raises(ConfigurationError, match="gguf_max_gpu_layers must be"):
        SKLLMConfig.set_gguf_max_gpu_layers(layers)


@pytest.mark.parametrize("name", ["gguf_verbose", "show_progress"])
@pytest.mark.parametrize("value", [None, 1, "perhaps"])
def test_a_flag_is_a_flag(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} must be True or False"):
        setter(name)(value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_replicas": 0}, "min_replicas"),
        ({"min_replicas": 1.0}, "min_replicas"),
        ({"min_replicas": True}, "min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas must be an int of at least 3"),
        ({"num_gpus": -1}, "num_gpus"),
        ({"num_gpus": 1.5}, "num_gpus=1.5"),
        ({"num_gpus": float("nan")}, "num_gpus"),
        ({"num_cpus": -0.5}, "num_cpus"),
        ({"num_cpus": "4"}, "num_cpus"),
        ({"num_cpus": True}, "num_cpus"),
        ({"n_ctx": 31}, "n_ctx"),
        ({"n_ctx": 4096.0}, "n_ctx"),
        ({"placement_timeout_s": -1}, "placement_timeout_s"),
        ({"placement_timeout_s": "60"}, "placement_timeout_s"),
    ],
)
def test_impossible_gguf_resources_are_refused_by_name(options, named):
    with pytest.raises(ConfigurationError, match=f"^{named}"):
        SKLLMConfig.set_gguf_resources("demo", **options)
    assert SKLLMConfig.get_gguf_resources("demo") == GGUFResources()


def test_a_models_own_gguf_resources_win_over_those_for_all():
    assert SKLLMConfig.get_gguf_resources("demo") == GGUFResources()
    SKLLMConfig.set_gguf_resources(num_cpus=2)
    SKLLMConfig.set_gguf_resources("gguf::demo", min_replicas=2, num_gpus=0.5)
    assert SKLLMConfig.get_gguf_resources("demo") == GGUFResources(min_replicas=2, num_gpus=0.5)
    assert SKLLMConfig.get_gguf_resources("gguf::demo") == SKLLMConfig.get_gguf_resources("demo")
    assert SKLLMConfig.get_gguf_resources("other") == GGUFResources(num_cpus=2)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10"])
def test_a_limit_is_a_positive_int_and_named(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be an int of at least 1"):
        SKLLMConfig.set_rate_limit("m", **{name: value})


def test_a_limit_belongs_to_its_model():
    SKLLMConfig.set_rate_limit("m", requests_per_minute=60)
    SKLLMConfig.set_rate_limit("azure::m", max_concurrency=3)
    SKLLMConfig.set_rate_limit("m", requests_per_minute=90)
    assert SKLLMConfig.get_rate_limit("m") == RateLimit(requests_per_minute=90)
    assert SKLLMConfig.get_rate_limit("openai::m") == RateLimit(requests_per_minute=90)
    assert SKLLMConfig.get_rate_limit("azure::m") == RateLimit(max_concurrency=3)
    assert SKLLMConfig.get_rate_limit("other") is None


def test_timeouts_reach_the_models_that_are_asked():
    defaults = Timeouts(10, 120, 600)
    assert SKLLMConfig.get_timeouts() == defaults
    SKLLMConfig.set_timeouts(connect_s=2, request_s=0.5, row_s=3600)
    assert SKLLMConfig.get_timeouts() == Timeouts(2.0, 0.5, 3600.0)
    assert "request_s=0.5" in repr(SKLLMConfig)
    SKLLMConfig.set_google_project("p")
    SKLLMConfig.set_gpt_url("http://localhost:1/v1")
    for model, family in (("m", "gpt"), ("custom_url::m", "gpt"), ("m", "vertex")):
        with warnings.catch_warnings(action="ignore"):
            patience = resolve(model, "sk-x", family=family).patience
        assert (patience.connect_s, patience.timeout_s, patience.deadline_s) == (2.0, 0.5, 3600.0)
    SKLLMConfig.set_timeouts(row_s=60)
    assert SKLLMConfig.get_timeouts() == Timeouts(row_s=60)
    SKLLMConfig.reset()
    assert SKLLMConfig.get_timeouts() == defaults


@pytest.mark.parametrize("name", ["connect_s", "request_s", "row_s"])
@pytest.mark.parametrize("value", [0, -1, True, "10", None, float("nan"), float("inf")])
def test_a_timeout_is_a_number_above_0_and_named(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be a number of seconds above 0"):
        SKLLMConfig.set_timeouts(**{name: value})


def test_the_repr_shows_settings_with_their_source_but_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    assert "openai_key = ***  (environment)" in repr(SKLLMConfig)
    SKLLMConfig.set_openai_key(KEY)
    SKLLMConfig.set_rate_limit("m", max_concurrency=5)
    SKLLMConfig.set_gguf_resources(num_cpus=2)
    shown = repr(SKLLMConfig)
    assert KEY not in shown + repr(SKLLMConfig._settings)
    for part in (
        "openai_key = ***  (set)",
        "'my-project'  (environment)",
        "'global'  (default)",
        "m'",
        "gpt_url = None",
    ):
        assert part in shown


def test_nothing_is_written_into_the_environment():
    before = dict(os.environ)
    for name, _, _ in TEXTS:
        setter(name)("http://x")
    SKLLMConfig.set_gguf_max_gpu_layers(-1)
    SKLLMConfig.set_gguf_verbose(True)
    SKLLMConfig.set_show_progress(False)
    SKLLMConfig.set_gguf_resources(num_cpus=1)
    SKLLMConfig.set_rate_limit("m", requests_per_minute=1)
    repr(SKLLMConfig)
    SKLLMConfig.reset()
    assert dict(os.environ) == before


def test_the_reply_cache_is_one_file_for_every_process(monkeypatch, tmp_path):
    assert (SKLLMConfig.get_reply_cache(), SKLLMConfig.get_reply_cache_max_bytes()) == (None, 1_000_000_000)
    monkeypatch.chdir(tmp_path)
    for path, expected in {"~/c.sqlite": Path("~/c.sqlite").expanduser(), "c.sqlite": tmp_path / "c.sqlite"}.items():
        SKLLMConfig.set_reply_cache(path)
        assert SKLLMConfig.get_reply_cache() == str(expected)
        SKLLMConfig.reset()
        monkeypatch.setenv("SKLLM_CONFIG_REPLY_CACHE", path)
        assert SKLLMConfig.get_reply_cache() == str(expected)
    SKLLMConfig.set_reply_cache(tmp_path / "d", max_bytes=200_000)
    assert SKLLMConfig.get_reply_cache_max_bytes() == 200_000
    assert "reply_cache_max_bytes = 200000  (set)" in repr(SKLLMConfig)
    SKLLMConfig.set_reply_cache(tmp_path / "d")
    assert SKLLMConfig.get_reply_cache_max_bytes() == 1_000_000_000
    for bad in (0, 99_999, 1e9, True, None):
        with pytest.raises(ConfigurationError, match="max_bytes must be an int of at least 100000"):
            SKLLMConfig.set_reply_cache(tmp_path / "d", max_bytes=bad)
    SKLLMConfig.reset()
    monkeypatch.setenv("SKLLM_CONFIG_REPLY_CACHE_MAX_BYTES", "300000")
    assert SKLLMConfig.get_reply_cache_max_bytes() == 300_000


# --- secrets ------------------------------------------------------------------------------------------------------


def test_a_secret_is_wrapped_once_and_reveals_itself_only_when_asked():
    secret = Secret(KEY)
    assert Secret(secret) is secret
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"key": secret})["key"] is secret
    assert secret.reveal() == KEY
    assert type(secret.reveal()) is str
    assert secret.fingerprint == Secret(KEY).fingerprint != Secret("sk-other").fingerprint
    assert secret.fingerprint not in KEY


@dataclass
class Holder:
    key: str


def logged(secret):
    return logging.LogRecord("n", 20, "p", 1, "%s %r", (secret, secret), None).getMessage()


def in_a_traceback(secret):
    try:
        raise ValueError("bad", secret)
    except ValueError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        format,
        lambda secret: f"{secret:>50}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
        lambda secret: repr([secret, {"key": secret}]),
        lambda secret: repr(Holder(secret)),
        logged,
        in_a_traceback,
        lambda secret: pickle.dumps(secret, 0).decode("latin-1"),
        lambda secret: pickle.dumps(Holder(secret)).decode("latin-1"),
        lambda secret: json.dumps({"key": secret}),
        "".join,
        lambda secret: "key=" + secret + secret[3:] + secret * 2,
        lambda secret: " ".join(
            [secret.upper(), secret.removeprefix("s"), *secret, *secret.split("-"), secret.title()]
        ),
        lambda secret: str(secret.encode()) + str(bytearray(secret, "utf-8")),
        lambda secret: repr(pd.Series([secret])) + pd.DataFrame({"key": [secret]}).to_csv(),
        lambda secret: repr(np.array([secret])) + repr(np.array([secret], object)),
        lambda secret: repr(pa.array([secret])),
        lambda secret: yaml.dump({"key": secret}),
        lambda secret: pprint.pformat({"key": secret}),
        lambda secret: io.StringIO(secret).read(),
        lambda secret: repr(dir(secret)) + repr(getattr(secret, "__dict__", "")),
    ],
)
def test_a_secret_does_not_show(show):
    shown = show([Secret(KEY)] if show == "".join else Secret(KEY)).lower()
    assert "planted" not in shown and "0123456789abcdef" not in shown
    assert "sk-planted" in str([KEY])


def test_secrets_compare_by_their_text():
    secret, there = Secret(KEY), pickle.loads(pickle.dumps(Secret(KEY)))
    assert [KEY] == [secret] == [Secret(KEY)]
    assert operator.ne(secret, KEY) is False
    assert len({secret, Secret(KEY), KEY}) == 1
    for other in (there, Secret("sk-other"), "sk-other", "", str(secret), None):
        assert secret != other
        assert operator.eq(secret, other) is False
    assert there == pickle.loads(pickle.dumps(secret))
    assert there != "" and there != pickle.loads(pickle.dumps(Secret("sk-other")))
    assert isinstance(secret, str) and not hasattr(secret, "__dict__")


def test_a_pickled_secret_keeps_its_fingerprint_alone():
    there = pickle.loads(pickle.dumps(Secret(KEY)))
    assert (there.reveal(), there.fingerprint) == ("", Secret(KEY).fingerprint)
    assert not there


def test_a_key_is_found_in_order(monkeypatch):
    ref = SecretRef("openai_key", ("FIRST_KEY", "SECOND_KEY"), "abc")
    monkeypatch.delenv("FIRST_KEY", raising=False)
    with pytest.raises(MissingKeyError, match=r"openai_key.*set_openai_key.*FIRST_KEY"):
        resolve_secret(ref, {"another": "held-for-another"})
    monkeypatch.setenv("SECOND_KEY", "second")
    assert resolve_secret(ref) == "second"
    monkeypatch.setenv("FIRST_KEY", "first")
    assert resolve_secret(ref) == "first"
    SKLLMConfig.set_openai_key("set")
    assert resolve_secret(ref) == "set"
    assert resolve_secret(ref, {"abc": "held"}) == "held"
    assert resolve_secret(SecretRef("other_key", ("FIRST_KEY",))) == "first"


def test_the_standard_variable_counts_last_and_can_be_left_out(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "standard")
    assert SKLLMConfig.get_openai_key().reveal() == "standard"
    assert SKLLMConfig.get_openai_key(include_standard_env=False) is None
    monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY", "ours")
    assert SKLLMConfig.get_openai_key().reveal() == "ours"
