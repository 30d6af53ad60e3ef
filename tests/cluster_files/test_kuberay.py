"""KubeRay's schemas accept the manifests, and refuse a field that they do not know.

Kubernetes drops unknown fields of these resources without a word, so a misspelt field would only be missing. The
schemas are KubeRay's own: set KUBERAY_CRDS to a folder that holds ray.io_rayclusters.yaml and ray.io_rayjobs.yaml, from
https://github.com/ray-project/kuberay/tree/master/ray-operator/config/crd/bases.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema", reason="KubeRay's schemas need jsonschema: install ray[default]")

KUBERAY = Path(__file__).parents[2] / "cluster" / "kuberay"
MANIFESTS = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERAY / name).read_text())
    return found


def _cluster(name: str) -> dict[str, Any]:
    spec = _read(name)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def manifest_of(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of a cluster that `spec` describes."""
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}, "spec": spec}


def _strict(schema: Any) -> Any:
    """Return an OpenAPI v3 schema as a JSON schema that refuses fields which it does not name."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(one) for name, one in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key not in {"default", "description", "example"}
    }
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@functools.cache
def _schema(path: Path) -> Any:
    crd = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  either is safe
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return _strict(version["schema"]["openAPIV3Schema"])


@pytest.fixture
def check() -> Callable[[str, dict[str, Any]], None]:
    folder = os.environ.get("KUBERAY_CRDS", "")
    missing = [crd for crd in MANIFESTS.values() if not folder or not (Path(folder) / crd).is_file()]
    if missing:
        why = f"KUBERAY_CRDS names no folder with {' and '.join(missing)}: cluster/kuberay is not validated"
        warnings.warn(why, UserWarning, stacklevel=2)
        pytest.skip(why)

    def check(name: str, manifest: dict[str, Any]) -> None:
        jsonschema.validate(manifest, _schema(Path(folder) / MANIFESTS[name]), jsonschema.Draft7Validator)

    return check


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberays_schema_accepts_the_manifest(name: str, check: Callable[[str, dict[str, Any]], None]) -> None:
    check(name, _read(name))


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("path", "field", "misspelt"),
    [
        ("", "enableInTreeAutoscaling", "enableInTreeAutoScaling"),
        ("autoscalerOptions", "idleTimeoutSeconds", "idleTimeoutSecs"),
        ("headGroupSpec", "rayStartParams", "rayStartParam"),
        ("workerGroupSpecs.0", "replicas", "replica"),
        ("workerGroupSpecs.0.template.spec", "tolerations", "toleration"),
        ("workerGroupSpecs.0.template.spec.containers.0", "volumeMounts", "volumeMount"),
        ("workerGroupSpecs.0.template.spec.volumes.1.hostPath", "type", "kind"),
    ],
)
def test_a_misspelt_field_is_refused(
    name: str, path: str, field: str, misspelt: str, check: Callable[[str, dict[str, Any]], None]
) -> None:
    manifest = copy.deepcopy(_read(name))
    place = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for step in path.split(".") if path else []:
        place = place[int(step) if step.isdigit() else step]
    place[misspelt] = place.pop(field)
    with pytest.raises(jsonschema.ValidationError, match=misspelt):
        check(name, manifest)


def test_a_misspelt_field_of_the_job_is_refused(check: Callable[[str, dict[str, Any]], None]) -> None:
    manifest = _read("rayjob.yaml")
    manifest["spec"]["shutdownAfterJobFinish"] = manifest["spec"].pop("shutdownAfterJobFinishes")
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        check("rayjob.yaml", manifest)


def test_a_wrong_type_is_refused(check: Callable[[str, dict[str, Any]], None]) -> None:
    manifest = _read("raycluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="none"):
        check("raycluster.yaml", manifest)


def test_both_manifests_describe_one_cluster() -> None:
    assert _cluster("raycluster.yaml") == _cluster("rayjob.yaml")


def test_workers_come_and_go() -> None:
    cluster = _cluster("raycluster.yaml")
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert group["maxReplicas"] > 0
    tolerated = {one["key"] for one in group["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated


def test_the_head_has_no_gpu_and_the_workers_have() -> None:
    cluster = _cluster("raycluster.yaml")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    head, worker = (
        group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])
    )
    assert "nvidia.com/gpu" not in head
    assert worker["nvidia.com/gpu"] == "1"


def test_ray_start_parameters_are_strings() -> None:
    cluster = _cluster("raycluster.yaml")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_key_is_a_mounted_file_on_every_pod() -> None:
    from skllm_ray.config.process_state import ENV

    cluster = _cluster("raycluster.yaml")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert set(environment) <= set(ENV.values()) | {f"{ENV['openai_key']}_FILE"}
        assert "SKLLM_CONFIG_OPENAI_KEY" not in environment
        mounts = {one["name"]: one for one in container["volumeMounts"]}
        assert mounts["secrets"]["readOnly"] is True
        assert environment["SKLLM_CONFIG_OPENAI_KEY_FILE"].startswith(mounts["secrets"]["mountPath"])
        assert environment["SKLLM_CONFIG_GGUF_DOWNLOAD_PATH"] == mounts["models"]["mountPath"]
        secret = next(one["secret"] for one in pod["volumes"] if one["name"] == "secrets")
        assert secret["defaultMode"] == 0o440
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_job_resumes_and_its_cluster_ends_with_it() -> None:
    job = _read("rayjob.yaml")["spec"]
    assert "skllm-ray run classify " in job["entrypoint"]
    assert "\n" not in job["entrypoint"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["submissionMode"] == "K8sJobMode"
    assert job["backoffLimit"] > 0
    assert "env_vars" not in str(job)
