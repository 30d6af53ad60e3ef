"""What the doctor sees, says and keeps to itself."""

from __future__ import annotations

import importlib
import socket
import sys

import pytest
from click.testing import CliRunner

from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.api.reachability import fault_at
from skllm_ray.llm.gpt.clients.llama_cpp import health
from skllm_ray.llm.gpt.clients.llama_cpp.kernels import REBUILD
from skllm_ray.testing import ChatServer

doctor = importlib.import_module("skllm_ray.cli.doctor")  # the package's attribute is the command
KEY = "sk-planted-secret-1234567890"


def find(subject: str):
    (finding,) = [one for one in doctor.examine() if one.subject == subject]
    return finding


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("skllm_ray.execution.health._last_cluster", lambda: "")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_machine_that_has_everything_is_ready(monkeypatch, tmp_path):
    SKLLMConfig.set_gguf_download_path(str(tmp_path))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    for subject in ("Python", "Ray", "llama.cpp", "memory", "disk", "OpenAI key"):
        assert subject in done.output
    assert "Ready" in done.output


def test_what_mends_a_fault_can_be_copied_at_80_columns(monkeypatch):
    monkeypatch.setattr(doctor, "library_health", lambda: health.LibraryHealth(fault="it dies"))
    told = CliRunner().invoke(main, ["doctor"], env={"COLUMNS": "80"}).output
    assert f"\nllama.cpp: what mends it\n  {REBUILD}\n" in told
    assert len(REBUILD) > 80


def test_a_stale_address_of_ray_is_a_fault_that_says_what_to_unset(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "RAY_ADDRESS" in done.output
    assert "refused" in done.output


def test_what_listens_at_the_address_is_no_ray(monkeypatch):
    with ChatServer() as server:
        monkeypatch.setenv("RAY_ADDRESS", server.url.partition("//")[2].partition("/")[0])
        assert "no Ray" in find("Ray").text


def test_a_key_is_told_to_be_there_and_shown_nowhere():
    with ChatServer() as server:
        SKLLMConfig.set_openai_key(KEY)
        SKLLMConfig.set_gpt_url(server.url)
        done = CliRunner().invoke(main, ["doctor"])
    assert KEY not in done.output
    assert "there (not shown)" in done.output
    assert f"{server.url} answers" in done.output.replace("\n", "").replace("             ", "")


def test_a_server_that_is_away_is_named():
    SKLLMConfig.set_gpt_url(f"http://127.0.0.1:{free_port()}/v1")
    finding = find("custom_url")
    assert (finding.state, "refused" in finding.text.lower()) == ("warning", True)
    assert "curl" in finding.mend


def test_a_refused_key_is_told_from_a_missing_one():
    import http.server
    import threading

    from skllm_ray.config.secret import Secret

    class Guarded(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            taken = self.headers.get("Authorization") == "Bearer right"
            self.send_response(200 if taken else 401)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert fault_at(url, Secret("right")) == ""
    assert "key is refused" in fault_at(url, Secret("wrong"))
    assert fault_at(url) == ""
    server.shutdown()


def test_a_llama_cpp_that_kills_its_process_kills_not_this_one(monkeypatch, tmp_path):
    (tmp_path / "llama_cpp.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    finding = find("llama.cpp")
    assert finding.state == "fault"
    assert "signal 4" in finding.text


def test_a_llama_cpp_that_does_not_load_says_why(monkeypatch, tmp_path):
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert "libgomp.so.1" in health.library_health().fault


def test_a_project_without_credentials_is_told_how_to_get_them(monkeypatch, tmp_path):
    pytest.importorskip("google.genai")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    SKLLMConfig.set_google_project("my-project")
    assert "gcloud auth" in find("Vertex AI").mend


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are read there")
def test_memory_is_told_in_bounds():
    free, total = doctor._memory_bytes()
    assert 0 < free <= total
