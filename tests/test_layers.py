"""Who may import whom, what an import costs, and what the public modules offer."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import skllm_ray

ROOT = Path(skllm_ray.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = {
    "": {"execution.session", "trusted"},
    "config": {"config", "errors"},
    "errors": {"plain_text"},
    "plain_text": set(),
    "memory": {"memory", "errors"},
    "prompts": {"prompts"},
    "datasets": {"datasets"},
    "tasks": {"tasks", "prompts", "memory", "errors"},
    "llm": {"llm", "tasks.base", "config", "errors", "plain_text"},
    "execution": {"execution", "tasks", "llm", "config", "errors"},
    "models": {
        "models", "tasks", "prompts", "memory", "execution", "config", "errors", "plain_text", "cascade",
        "llm.registry", "llm.base", "llm.credentials", "llm.model_facts", "llm.submissions",
        "llm.tuning", "llm.tuning_services",
    },
    "cascade": {"cascade", "errors"},
    "classification": {"models"},
    "text2text": {"models"},
    "vectorization": {"models"},
    "trusted": {
        "cascade", "classification", "text2text", "vectorization", "models", "memory", "tasks", "llm.base", "config",
    },
    "tuning": {"execution.tuning_jobs", "execution.tuning_watcher", "llm.tuning", "errors"},
    "batch": {
        "", "batch", "cascade", "tasks", "llm.registry", "llm.base", "llm.cancellation", "llm.submissions",
        "llm.provider_batches", "llm.tiers", "execution", "config", "errors", "plain_text",
    },
    "testing": {"testing", "llm.base", "tasks.base", "config", "errors"},
    "testing_tuning": {"testing"},
    "cli": {
        "", "cli", "batch", "classification", "config", "datasets", "errors", "execution.cluster_status",
        "execution.health", "execution.model_actor", "execution.rate_limiter", "execution.session", "execution.weights",
        "llm.api.reachability", "llm.gpt.clients.llama_cpp", "llm.registry", "models", "plain_text", "text2text",
        "tuning", "vectorization",
    },
}  # fmt: skip
"""Each layer, and what of skllm_ray it may import besides."""
HOMES = {
    "ray": "execution",
    "genai_prices": "llm",
    "openai": "llm",
    "aiohttp": "llm",
    "httpx": "llm",
    "google": "llm.vertex",
    "llama_cpp": "llm.gpt.clients.llama_cpp",
    "huggingface_hub": "llm.gpt.clients.llama_cpp",
    "sklearn": "models",
    "skops": "models",
    "pydantic": "models",
}
"""Packages that one layer alone may import."""
PUBLIC = [
    "",
    "batch",
    "cascade",
    "classification",
    "config",
    "datasets",
    "errors",
    "memory",
    "prompts",
    "tasks",
    "testing",
    "testing_tuning",
    "text2text",
    "tuning",
    "vectorization",
]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_within(name: str, package: str) -> bool:
    return name == package or (package != "" and name.startswith(f"{package}."))


@functools.cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text("utf-8"))))


@functools.cache
def imports_of(file: Path) -> list[str]:
    """Return what a file imports, wherever it does so, as dotted names; a name's own last part is kept."""
    found = []
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def reaches(layer: str, imported: str) -> bool:
    name = imported.removeprefix("skllm_ray").removeprefix(".")
    if name in skllm_ray.__all__:
        name = ""
    return any(is_within(name, package) for package in LAYERS[layer])


def layer_of(file: Path) -> str:
    return module_name(file).partition(".")[0]


def test_every_module_has_a_layer():
    assert {layer_of(file) for file in FILES} <= set(LAYERS)


def test_a_module_imports_only_what_its_layer_may():
    own = [(file, name) for file in FILES for name in imports_of(file) if name.partition(".")[0] == "skllm_ray"]
    assert [f"{module_name(file)}: {name}" for file, name in own if not reaches(layer_of(file), name)] == []
    assert len(own) > len(FILES)


@pytest.mark.parametrize("package", HOMES)
def test_a_package_is_imported_in_its_home_alone(package):
    users = {module_name(file) for file in FILES for name in imports_of(file) if name.partition(".")[0] == package}
    users -= {"memory._sklearn_nn"} if package == "sklearn" else set()
    users -= {"batch.job.options", "cli.job_file"} if package == "pydantic" else set()
    assert [user for user in users if not is_within(user, HOMES[package])] == []


def test_tasks_and_prompts_are_pure():
    pure = {
        "__future__",
        "abc",
        "collections",
        "dataclasses",
        "json",
        "re",
        "string",
        "typing",
        "unicodedata",
        "xml",
        "numpy",
        "skllm_ray",
    }
    files = [file for file in FILES if layer_of(file) in {"tasks", "prompts"}]
    assert files
    assert {name.partition(".")[0] for file in files for name in imports_of(file)} <= pure


def test_the_table_can_refuse():
    assert not reaches("tasks", "skllm_ray.llm.base.Reply")
    assert not reaches("models", "skllm_ray.llm.gpt.clients.openai.spec.OpenAISpec")
    assert not reaches("config", "skllm_ray.init")


def test_what_contributing_names_is_where_it_says():
    table = (ROOT.parent / "CONTRIBUTING.md").read_text("utf-8").partition("## Where to find it")[2].partition("## ")[0]
    places = re.findall(r"`([\w/]+\.py)`(?: `(\w+)`)?", table)
    assert len(places) > 10
    for path, name in places:
        file = ROOT.parent / path if path.startswith("tests/") else ROOT / path
        assert file.is_file(), path
        assert not name or re.search(rf"^(class|def|async def)? ?{name}\b", file.read_text("utf-8"), re.MULTILINE), name


def test_the_library_never_prints():
    calls = [
        f"{file}:{node.lineno}"
        for file in FILES
        for node in nodes_of(file)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import skllm_ray", "ray openai google.genai llama_cpp sklearn pandas numpy"),
        ("import skllm_ray.classification", "ray openai google.genai vertexai llama_cpp jinja2 huggingface_hub"),
        ("import skllm_ray.testing", "ray openai google.genai llama_cpp sklearn"),
    ],
)
def test_an_import_is_cheap(statement, unwanted):
    code = f"{statement}, sys; sys.exit(' '.join(set({unwanted.split()!r}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_importable_and_sorted(name):
    module = importlib.import_module(f"skllm_ray.{name}".rstrip("."))
    assert [found for found in module.__all__ if not hasattr(module, found)] == []
    assert list(module.__all__) == sorted(module.__all__)


def test_the_version_is_the_installed_one():
    try:
        assert metadata.version("skllm-ray") == skllm_ray.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("skllm-ray is not installed")
