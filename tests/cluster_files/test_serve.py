"""vLLM on Ray Serve: Ray's own schemas accept the files, and both ways of deploying it are one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster_files.test_kuberay import KUBERAY, check, manifest_of  # noqa: F401  `check` is a fixture

CLUSTER = Path(__file__).parents[2] / "cluster"


def _serve() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "serve-vllm.yaml").read_text())
    return found


def _service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())
    return found


def _llm() -> dict[str, Any]:
    (app,) = _serve()["applications"]
    (found,) = app["args"]["llm_configs"]
    return dict(found)


def test_serves_schema_accepts_the_file_and_no_misspelt_field() -> None:
    schema = pytest.importorskip(
        "ray.serve.schema", exc_type=ImportError, reason="Ray Serve is not installed: `pip install ray[serve]`"
    )
    schema.ServeDeploySchema.model_validate(_serve())
    wrong = copy.deepcopy(_serve())
    wrong["applications"][0]["import_pth"] = wrong["applications"][0].pop("import_path")
    with pytest.raises(ValueError, match="import_p"):
        schema.ServeDeploySchema.model_validate(wrong)


def test_serves_autoscaling_accepts_the_numbers() -> None:
    pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed whole: `pip install ray[serve]`")
    config = pytest.importorskip(
        "ray.serve.config", exc_type=ImportError, reason="Ray Serve is not installed: `pip install ray[serve]`"
    )
    scaling = _llm()["deployment_config"]["autoscaling_config"]
    found = config.AutoscalingConfig.model_validate(scaling)
    assert (found.min_replicas, found.max_replicas) == (0, scaling["max_replicas"])
    assert scaling.keys() <= config.AutoscalingConfig.model_fields.keys()
    assert scaling["target_ongoing_requests"] < _llm()["deployment_config"]["max_ongoing_requests"]


def test_the_models_description_is_one() -> None:
    llm = pytest.importorskip("ray.serve.llm", exc_type=ImportError, reason="ray[llm] is not installed")
    llm.LLMConfig.model_validate(_llm())


def test_kubernetes_deploys_the_same() -> None:
    assert yaml.safe_load(_service()["spec"]["serveConfigV2"]) == _serve()


def test_kuberays_schema_accepts_its_cluster(check: Any) -> None:  # noqa: F811
    check("raycluster.yaml", manifest_of(_service()["spec"]["rayClusterConfig"]))


def test_the_gpus_are_the_workers_and_as_many_as_the_replicas() -> None:
    cluster = _service()["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["minReplicas"], limits["nvidia.com/gpu"]) == (0, "1")
    assert group["maxReplicas"] == _llm()["deployment_config"]["autoscaling_config"]["max_replicas"]
    assert cluster["rayVersion"] == yaml.safe_load((KUBERAY / "raycluster.yaml").read_text())["spec"]["rayVersion"]


def test_white_space_has_an_end() -> None:
    options = _llm()["engine_kwargs"]["structured_outputs_config"]
    assert options == {"backend": "xgrammar", "disable_any_whitespace": True}  # vLLM refuses it under "auto"
