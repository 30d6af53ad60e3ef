"""Every test starts from default settings, without credentials of the machine it runs on.

``make test`` runs the tests in several processes (pytest-xdist). One process runs a file's tests, so that what they
share is made once. One runs all that share a Ray, and one all that start Rays of their own: first, since they take
longest.
"""

from __future__ import annotations

import logging
import os
import signal
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution import ray_state
from skllm_ray.llm.api import capabilities
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.rate_limit import installed

CLUSTER = Path(__file__).parent / "cluster"


def pytest_configure() -> None:
    """Take Ctrl-C as ever, also where a shell started the tests in the background and had them ignore it.

    And let what tests start run as they do.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside tests of other processes


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent != CLUSTER)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = config.rootpath / nodeid.partition("::")[0]
            if file.parent != CLUSTER:
                return str(file)
            return "one Ray" if "ray_here" in file.read_text("utf-8") else "Rays of their own"

    config.option.loadscopereorder = False  # in the order in which they were collected
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def _one_thread_for_each_model() -> Iterator[None]:
    """Models would take all CPUs, and beside other processes their threads would wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skllm_ray.llm.gpt.clients.llama_cpp.spec._own_threads", lambda: 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def _certificates_are_read_once() -> Iterator[None]:
    """Each client of an SDK would read all authorities' certificates anew: 30 ms of a CPU."""
    read = ssl.create_default_context
    kept: dict[str, ssl.SSLContext] = {}

    def once(*args: Any, cafile: str | None = None, capath: str | None = None, **how: Any) -> ssl.SSLContext:
        if args or how or capath or cafile is None:
            return read(*args, cafile=cafile, capath=capath, **how)
        if cafile not in kept:
            kept[cafile] = read(cafile=cafile)
        return kept[cafile]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", once)
        yield


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("SKLLM_CONFIG_", "GOOGLE_CLOUD_")) or name in {"OPENAI_API_KEY", "OPENAI_BASE_URL"}:
            monkeypatch.delenv(name)
    SKLLMConfig.reset()
    ModelCache.remove(capabilities._PLACE)  # another test's server may have had the same port
    _forget_servers()
    yield
    SKLLMConfig.reset()


def _forget_servers() -> None:
    """Begin with a limiter of this process that knows no server: one that served before would be waited for."""
    own = installed._state.pop("own", None)
    installed._state.pop("pid", None)
    if installed._state.get("limiter") is own:
        installed._state.pop("limiter", None)


@pytest.fixture
def local_mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything runs in this process, commands too, which end with a shutdown that would leave this mode.

    A Ray that other tests started is left alone.
    """
    monkeypatch.setattr(skllm_ray, "shutdown", ModelCache.clear)
    skllm_ray.init(local_mode=True)
    yield
    ray_state._state["local_mode"] = False
    ModelCache.clear()


@pytest.fixture
def s3_server() -> Iterator[str]:
    """The address (host:port) of an S3 server that holds nothing; another one's buckets would outlive it."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").read()
    yield f"{host}:{port}"
    server.stop()
