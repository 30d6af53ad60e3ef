"""What ``skllm-ray doctor`` looks at, and what it says of it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayError
from skllm_ray.execution.health import RayHealth, nodes_of, ray_health
from skllm_ray.llm.api.reachability import fault_at
from skllm_ray.llm.gpt.clients.llama_cpp.health import library_health
from skllm_ray.llm.gpt.clients.llama_cpp.kernels import REBUILD
from skllm_ray.plain_text import cell

State = Literal["ok", "warning", "fault"]

_GB = 1e9
_LOW_MEMORY_GB = 2.0
_LOW_DISK_GB = 5.0
_OPENAI_URL = "https://api.openai.com/v1"
_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "fault": "[red]✗[/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    subject: str
    """What was looked at."""
    state: State
    """``"ok"``; ``"warning"`` where something will not work or not work well; ``"fault"`` where nothing will."""
    text: str
    """What was found."""
    mend: str = ""
    """The command or setting that mends it; empty where nothing is to be done."""


def examine(address: str | None = None) -> Iterator[Finding]:
    """Look at everything that a first call needs, and tell what was found, one by one.

    Parameters
    ----------
    address : str or None, default=None
        A Ray cluster's address. None looks where a call would: at ``RAY_ADDRESS``, then on this machine.
    """
    yield _python()
    yield from _ray(ray_health(address))
    yield _llama_cpp()
    yield _memory()
    yield _disk()
    yield from _openai()
    yield from _azure()
    yield from _google()


def show(address: str | None = None) -> bool:
    """Print what was found, and return whether nothing of it is a fault."""
    console = Console()
    with console.status("Looking …"):
        found = list(examine(address))
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ({"width": 1}, {"style": "cyan", "no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**column)
    for finding in found:
        table.add_row(_MARKS[finding.state], cell(finding.subject), cell(finding.text))
    console.print(table)
    for finding in found:
        if finding.mend:  # in one line, so that a copy of it works
            console.print(cell(f"\n{finding.subject}: what mends it"), style="cyan")
            console.print(cell(f"  {finding.mend}"), style="bold", soft_wrap=True)
    counts = [sum(finding.state == state for finding in found) for state in ("fault", "warning")]
    console.print(_summary(*counts))
    return counts[0] == 0


def _summary(n_faults: int, n_warnings: int) -> str:
    if n_faults:
        return f"\n{_n(n_faults, 'fault')} to mend first, {_n(n_warnings, 'warning')}."
    if n_warnings:
        return f"\nReady, with {_n(n_warnings, 'warning')}: it depends on the model that you use."
    return "\nReady."


def _n(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, skllm-ray {version('skllm-ray')}"
    if platform.system() == "Windows":
        return Finding("Python", "fault", text, "Use WSL: Windows itself is not supported.")
    return Finding("Python", "ok", text)


def _ray(health: RayHealth) -> Iterator[Finding]:
    if health.address and health.fault and health.given:
        mend = "unset RAY_ADDRESS, to start Ray on this machine, or set it to a cluster that runs"
        yield Finding("Ray", "fault", f"{health.version}; no cluster at {health.address}: {health.fault}", mend)
        return
    if not health.address or health.fault:
        gone = f" (the last one of this machine, {health.address}, is gone)" if health.fault else ""
        yield Finding("Ray", "ok", f"{health.version}; no cluster runs here{gone}: the first call starts one")
    else:
        yield Finding("Ray", "ok", f"{health.version}; a cluster runs at {health.address}: calls join it")
        yield _nodes(health.address)
    if health.forces_token and not health.uses_token:
        mend = "put the cluster's token into ~/.ray/auth_token, or unset RAY_AUTH_MODE"
        yield Finding("Ray's token", "fault", "RAY_AUTH_MODE=token, and no token is here", mend)
    elif health.uses_token:
        yield Finding("Ray's token", "ok", "there; Ray uses it by itself, and nodes that join by hand need it too")


def _nodes(address: str) -> Finding:
    packages = ["ray", "skllm-ray", *(["llama-cpp-python"] if _installed("llama-cpp-python") else [])]
    try:
        nodes = nodes_of(address, packages)
    except SkllmRayError as error:
        return Finding("cluster", "fault", str(error))
    size = f"{_n(nodes.n_nodes, 'node')}, {nodes.cpus:g} CPUs, {nodes.gpus:g} GPUs"
    if nodes.differing:
        return Finding("cluster", "fault", f"{size}. {nodes.differing}")
    return Finding("cluster", "ok", f"{size}; every node has this process's Python and packages")


def _llama_cpp() -> Finding:
    if not _installed("llama-cpp-python"):
        text = "not installed: needed for gguf:: models alone"
        return Finding("llama.cpp", "warning", text, "pip install 'skllm-ray[gguf]'")
    health = library_health()
    if health.fault:
        return Finding("llama.cpp", "fault", health.fault, REBUILD)
    text = f"llama-cpp-python {health.version} for {', '.join(health.features) or 'any processor'}"
    if not health.lays_out_weights:
        return Finding(
            "llama.cpp", "warning", f"{text}; it dies where it uses AMX: models are computed without", REBUILD
        )
    if health.supports_gpu:
        return Finding("llama.cpp", "ok", f"{text}; layers can be placed on a GPU")
    if shutil.which("nvidia-smi"):
        mend = "CMAKE_ARGS=-DGGML_CUDA=ON pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
        return Finding("llama.cpp", "warning", f"{text}; built without CUDA, though this machine has a GPU", mend)
    return Finding("llama.cpp", "ok", f"{text}; CPU alone")


def _memory() -> Finding:
    free, total = _memory_bytes()
    text = f"{free / _GB:.1f} GB free of {total / _GB:.1f} GB"
    if free < _LOW_MEMORY_GB * _GB:
        return Finding("memory", "warning", text, "Ray and its workers take about 1 GB; close what you do not need")
    return Finding("memory", "ok", text)


def _memory_bytes() -> tuple[float, float]:
    """Return the bytes of memory that are free, and all that this process may use: a container has a limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = float(os.sysconf("SC_PHYS_PAGES") * page)
    free = total
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (bound := limit.read_text().strip()).isdigit():
        total = min(total, float(bound))
        free = min(free, total - float(used.read_text()))
    return free, total


def _disk() -> Finding:
    path = Path(SKLLMConfig.get_gguf_download_path())
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(there).free / _GB
    text = f"{free:.0f} GB free where models are kept ({path})"
    if not os.access(there, os.W_OK):
        return Finding("disk", "warning", f"{text}; it cannot be written", "SKLLMConfig.set_gguf_download_path(…)")
    if free < _LOW_DISK_GB:
        return Finding("disk", "warning", text, "a model takes 0.3 to 20 GB: SKLLMConfig.set_gguf_download_path(…)")
    return Finding("disk", "ok", text)


def _openai() -> Iterator[Finding]:
    """Look for the key of the GPT family, and at the servers that it is for."""
    key, custom = SKLLMConfig.get_openai_key(), SKLLMConfig.get_gpt_url()
    if key is None:
        mend = "export OPENAI_API_KEY=…, or SKLLMConfig.set_openai_key(…)"
        yield Finding("OpenAI key", "warning", "none: needed for OpenAI's and Azure's models", mend)
    else:
        yield Finding("OpenAI key", "ok", "there (not shown)")
        yield _server("OpenAI", SKLLMConfig.get_openai_base_url() or _OPENAI_URL, lambda url: fault_at(url, key))
    if custom is not None:
        yield _server("custom_url", custom, lambda url: fault_at(url, key))


def _server(subject: str, url: str, fault: Callable[[str], str]) -> Finding:
    found = fault(url)
    if not found:
        return Finding(subject, "ok", f"{url} answers")
    refused = "refused" in found and "key" in found
    mend = "check the key" if refused else f"check the address, proxy and firewall: curl -i {url}/models"
    return Finding(subject, "warning", f"{url}: {found}", mend)


def _azure() -> Iterator[Finding]:
    base = SKLLMConfig.get_azure_api_base()
    if base is not None:
        yield _server("Azure", base, fault_at)


def _google() -> Iterator[Finding]:
    project = SKLLMConfig.get_google_project()
    if project is None:
        return
    if not _installed("google-genai"):
        mend = "pip install 'skllm-ray[vertex]'"
        yield Finding("Vertex AI", "warning", f"project {project}; its package is missing", mend)
        return
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    file = Path(named or Path.home() / ".config/gcloud/application_default_credentials.json")
    if file.is_file():
        yield Finding("Vertex AI", "ok", f"project {project}; credentials there (not shown)")
    else:
        text = f"project {project}; no credentials in {file}"
        mend = "gcloud auth application-default login"
        yield Finding("Vertex AI", "warning", text, f"{mend} (on Google's own machines none are needed)")


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
