"""Ray's own validator accepts the files for its cluster launcher; they hold no credential and scale to zero."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("jsonschema", reason="Ray's validator needs jsonschema: install ray[default]")

from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ["aws.yaml", "gcp.yaml"]
LAUNCHERS = [*CLOUDS, "on-premises.yaml"]
_KEY = re.compile(r"\bsk-\w|\bhf_[A-Za-z0-9]{8}|AKIA[0-9A-Z]{8}|BEGIN [A-Z ]*PRIVATE KEY")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return found


def _environment(config: dict[str, Any]) -> dict[str, str]:
    options = [option for option in config["docker"]["run_options"] if option.startswith("--env ")]
    return dict(option.removeprefix("--env ").split("=", 1) for option in options)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_validator_accepts_the_file(name: str) -> None:
    prepared = prepare_config(_read(name))
    validate_config(prepared)
    assert prepared["available_node_types"][prepared["head_node_type"]]["max_workers"] >= 0


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_validator_refuses_a_misspelt_field(name: str) -> None:
    config = _read(name)
    config["idle_timeout_minuets"] = config.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_rays_validator_refuses_a_misspelt_field_of_a_node_type(name: str) -> None:
    config = copy.deepcopy(_read(name))
    gpu = config["available_node_types"]["gpu"]
    gpu["min_worker"] = gpu.pop("min_workers")
    with pytest.raises(ValidationError, match="min_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_an_idle_cluster_is_its_head_alone(name: str) -> None:
    prepared = prepare_config(_read(name))
    assert 1 <= prepared["idle_timeout_minutes"] <= 30
    types = prepared["available_node_types"]
    assert all(kind["min_workers"] == 0 for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) <= prepared["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_has_no_gpu_and_the_workers_are_spot(name: str) -> None:
    config = _read(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 2}
    workers = {key: kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"]}
    assert any(kind["resources"].get("GPU") for kind in workers.values())
    for kind in workers.values():
        assert kind["max_workers"] > 0
        assert kind["resources"]["CPU"] > 0
        node = kind["node_config"]
        if config["provider"]["type"] == "aws":
            assert node["InstanceMarketOptions"]["MarketType"] == "spot"
        else:  # Ray reads this field as a list, as its own default does, and passes its items on
            assert node["scheduling"][0]["provisioningModel"] == "SPOT"


def test_the_head_on_premises_has_no_gpu() -> None:
    config = _read("on-premises.yaml")
    assert "--num-gpus=0" in config["head_start_ray_commands"][-1]
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_key_comes_from_a_file_that_the_node_mounts(name: str) -> None:
    config = _read(name)
    environment = _environment(config)
    file = environment["SKLLM_CONFIG_OPENAI_KEY_FILE"]
    assert not {"SKLLM_CONFIG_OPENAI_KEY", "OPENAI_API_KEY", "HF_TOKEN"} & set(environment)
    mounts = [option.split()[1].split(":") for option in config["docker"]["run_options"] if option.startswith("-v ")]
    source = next(mount[0] for mount in mounts if file.startswith(mount[1]) and mount[2:] == ["ro"])
    commands = "\n".join(config["initialization_commands"])
    assert f"{source}/openai_key" in commands
    assert "0400" in commands
    assert "0700" in commands
    assert not _KEY.search((CLUSTER / name).read_text())


@pytest.mark.parametrize(("name", "command"), [("aws.yaml", "aws secretsmanager"), ("gcp.yaml", "gcloud secrets")])
def test_a_secret_that_cannot_be_read_stops_the_node(name: str, command: str) -> None:
    fetch = next(one for one in _read(name)["initialization_commands"] if command in one)
    assert fetch.startswith("set -o pipefail;")  # or the pipe would write an empty key and go on
    assert "echo" not in fetch


@pytest.mark.parametrize("name", LAUNCHERS)
def test_models_are_kept_on_the_nodes_disk(name: str) -> None:
    config = _read(name)
    path = _environment(config)["SKLLM_CONFIG_GGUF_DOWNLOAD_PATH"]
    assert any(option.startswith("-v /") and option.endswith(f":{path}") for option in config["docker"]["run_options"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_variables_are_those_that_the_library_reads(name: str) -> None:
    from skllm_ray.config.process_state import ENV

    known = set(ENV.values()) | {f"{ENV['openai_key']}_FILE"}
    assert set(_environment(_read(name))) <= known


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_dashboard_and_the_job_server_are_not_open(name: str) -> None:
    start = _read(name)["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
