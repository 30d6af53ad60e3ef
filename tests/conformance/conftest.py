"""Servers that this project did not write: aimock (npm) and llama.cpp's own, as ``make conformance`` installs them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE

FOLDER = Path(os.environ.get("SKLLM_RAY_CONFORMANCE", Path(__file__).parents[2] / ".conformance"))
AIMOCK = FOLDER / "node_modules" / ".bin" / "llmock"
LABELS = ("negative", "neutral", "positive")


@contextmanager
def serving(command: list[str], url: str, path: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(url + path, timeout=5):  # noqa: S310
                    break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def aimock(tmp_path: Path) -> Callable[..., object]:
    """Start aimock with options; it answers a text that names a label with that label."""
    if not AIMOCK.exists() or shutil.which("node") is None:
        pytest.skip(f"{AIMOCK} is missing: run `make conformance`, which installs it with npm")
    fixtures = [
        {"match": {"userMessage": f"it is {label}"}, "response": {"content": json.dumps({"label": label})}}
        for label in LABELS
    ]
    (tmp_path / "labels.json").write_text(json.dumps({"fixtures": fixtures}))

    def start(*options: str) -> object:
        port = free_port()
        command = [str(AIMOCK), "-p", str(port), "-f", str(tmp_path / "labels.json"), "--log-level", "silent", *options]
        return serving(command, f"http://127.0.0.1:{port}", "/v1/models")

    return start


@pytest.fixture(scope="module")
def llama_server() -> Iterator[str]:
    """Start llama-cpp-python's server with the demo model."""
    pytest.importorskip("uvicorn", reason="the extra `dev` brings llama_cpp.server's parts")
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(DEMO_FILE), "--port", str(port)]
    command += ["--n_ctx", "1024", "--n_threads", "1", "--logits_all", "true", "--embedding", "true"]
    with serving(command, f"http://127.0.0.1:{port}", "/v1/models") as url:
        yield url


LLAMA = FOLDER / "llama-server" / "bin" / "python"
_SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.use_jinja = 4096, 2, True
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
time.sleep(600)
"""


@pytest.fixture(scope="session")
def native_server() -> Iterator[str]:
    """llama.cpp's own server, in C++, with the demo model."""
    if not LLAMA.exists():
        pytest.skip(
            f"{LLAMA} is missing: run `make conformance`, which installs xllamacpp, llama.cpp's server in a wheel"
        )
    port = free_port()
    with serving([str(LLAMA), "-c", _SERVE, str(DEMO_FILE), str(port)], f"http://127.0.0.1:{port}", "/health") as url:
        yield url


@pytest.fixture
def vllm_server() -> str:
    """A vLLM server, which takes minutes to start on a CPU: whoever has one says where."""
    url = os.environ.get("SKLLM_RAY_VLLM_URL")
    if not url:
        pytest.skip(
            "SKLLM_RAY_VLLM_URL is not set: start `vllm serve MODEL` with the weights of SKLLM_RAY_VLLM_GGUF, "
            "and give its address, http://127.0.0.1:8000/v1"
        )
    return url
