"""Gateways and fake providers that others wrote: is a row lost, or a request wasted?

    make gateways

For each: 500 rows as they are, through an episode of 429s, through an outage (the process is killed and started again),
with a wrong key, and with a model that there is not. LiteLLM's proxy asks a server of ours, which also goes away for a
while. Requests are counted where they leave this process and, behind LiteLLM, where they arrive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayError
from skllm_ray.llm.api.http_client import StatusError
from skllm_ray.llm.gpt.clients.openai.backend import OpenAIBackend
from skllm_ray.testing import ChatServer, StatusFault
from skllm_ray.testing.chat_forms import default_answer

LABELS = ("good", "bad")
LATENCY_S = 0.1
KEY, WRONG_KEY = "sk-right-0123456789", "sk-wrong-0123456789"
EPISODE_S = 4.0
STARTED = 60
"""Rows that are answered before anything happens."""
START_S = 180.0


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """A server in a process of its own, which can be killed and started again at its port.

    Parameters
    ----------
    program : str
        Its command.
    folder : Path
        Where its files go.
    """

    name: ClassVar[str]
    refuses_key: ClassVar[bool] = True
    names_labels: ClassVar[bool] = True
    """Whether it answers with the label that stands in the text; else with any."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder, self.port = program, folder, free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return how it is started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = os.environ | {"AIMOCK_API_KEYS": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        log = (self.folder / f"{self.name}.log").open("ab")
        self._process = subprocess.Popen(
            self.command(), stdout=log, stderr=log, env=environment, start_new_session=True
        )
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.name} does not start: see {self.folder / self.name}.log")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def refuse(self, on: bool) -> None:
        """Answer all requests with 429, or no more."""
        raise NotImplementedError

    def forget_model(self) -> None:
        """Know no model of the name ``wrong``."""

    def forget_key(self) -> None:
        """Refuse the wrong key."""

    def post(self, path: str, body: object) -> None:
        """Tell it something."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60):
            pass

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/v1/models", timeout=10):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


class AIMock(Gateway):
    """npm's ``@copilotkit/aimock``."""

    name = "aimock"

    def command(self) -> list[str]:
        gone = {"message": "The model `wrong` does not exist", "type": "invalid_request_error"}
        fixtures: list[dict[str, Any]] = [
            {"match": {"model": "wrong"}, "response": {"error": {**gone, "code": "model_not_found"}, "status": 404}},
            *(
                {"match": {"userMessage": f"it is {one}"}, "response": {"content": json.dumps({"label": one})}}
                for one in LABELS
            ),
        ]
        (self.folder / "labels.json").write_text(json.dumps({"fixtures": fixtures}))
        options = ["-f", str(self.folder / "labels.json"), "--log-level", "silent"]
        return [self.program, "-p", str(self.port), *options, "--chaos-latency", str(round(LATENCY_S * 1000))]

    def refuse(self, on: bool) -> None:
        rates = {"rateLimitRate": float(on), "latencyMs": round(LATENCY_S * 1000)}
        self.post("/__aimock/chaos", rates)


class LLMock(Gateway):
    """PyPI's ``llmock``."""

    name = "llmock"
    names_labels = False

    def command(self) -> list[str]:
        return [self.program, "serve", "--port", str(self.port), "--latency-ms", str(round(LATENCY_S * 1000))]

    def refuse(self, on: bool) -> None:
        self.post("/_llmock/reset", {})
        if on:
            self.fail(429, retry_after=1)

    def forget_model(self) -> None:
        self.fail(404)

    def forget_key(self) -> None:
        self.fail(401)

    def fail(self, status: int, **options: Any) -> None:
        """Answer so from now on."""
        self.post("/_llmock/scenario", {"behaviors": [{"type": "fail", "status": status, "times": None, **options}]})


class LiteLLM(Gateway):
    """LiteLLM's proxy before a server of ours."""

    name = "litellm"

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(program, folder)
        self.refusing = False
        self.arrived = 0
        self.behind = self._server(0)
        self.behind.__enter__()

    def command(self) -> list[str]:
        model = {"model": "openai/labels", "api_base": self.behind.url, "api_key": "sk-behind"}
        config = {
            "model_list": [{"model_name": "labels", "litellm_params": model}],
            "general_settings": {"master_key": KEY},
        }
        (self.folder / "litellm.json").write_text(json.dumps(config))
        return [self.program, "--config", str(self.folder / "litellm.json"), "--port", str(self.port)]

    def refuse(self, on: bool) -> None:
        self.refusing = on

    @contextlib.contextmanager
    def nobody_behind(self) -> Iterator[None]:
        """Let the server behind it be away for a while."""
        port = int(self.behind.root.rpartition(":")[2])
        self.behind.__exit__()
        yield
        self.behind = self._server(port)
        self.behind.__enter__()

    def _server(self, port: int) -> ChatServer:
        return ChatServer(self._answer, latency_s=LATENCY_S, port=port)

    def _answer(self, body: dict[str, Any]) -> str | StatusFault:
        self.arrived += 1
        if self.refusing:
            return StatusFault(429, "Slow down.", "rate_limit_exceeded", None, (("retry-after", "1"),))
        return default_answer(body)


class Counted:
    """Counts what is sent, and what becomes of it."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._send = OpenAIBackend._send

    def __enter__(self) -> Counted:
        counted = self

        async def send(backend: OpenAIBackend, *given: Any) -> Any:
            try:
                answer = await counted._send(backend, *given)
            except StatusError as error:
                counted.sent[str(error.answer.status)] += 1
                raise
            except Exception as error:
                counted.sent[type(error).__name__] += 1
                raise
            counted.sent["200"] += 1
            return answer

        OpenAIBackend._send = send  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        OpenAIBackend._send = self._send  # type: ignore[method-assign]


def classify(
    gateway: Gateway, n_rows: int, key: str = KEY, model: str = "labels", disturb: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Ask for `n_rows` labels, and have something happen when the first ones are answered."""
    SKLLMConfig.set_gpt_url(f"{gateway.root}/v1")
    texts = [f"Number {i}: it is {LABELS[i % 2]}" for i in range(n_rows)]
    clf = ZeroShotGPTClassifier(model=f"custom_url::{model}", key=key).fit(None, LABELS)
    told: dict[str, Any] = {"rows": n_rows, "lost": n_rows, "error": ""}
    began = time.perf_counter()
    with Counted() as counted:

        def watch() -> None:
            while disturb is not None and counted.sent["200"] < STARTED:
                time.sleep(0.01)
            if disturb is not None:
                disturb()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            table = clf.predict_details(texts, on_error="coerce")
            whole = table["error"].isna()
            if gateway.names_labels:
                whole &= table["prediction"] == [LABELS[i % 2] for i in range(n_rows)]
            told |= {"lost": int((~whole).sum()), "error": "; ".join(sorted(set(table["error_kind"].dropna())))}
        except SkllmRayError as error:
            told["error"] = f"{type(error).__name__}: {error}".split("\n")[0]
        if isinstance(gateway, LiteLLM):
            told["arrived"], gateway.arrived = gateway.arrived, 0
        told |= {"sent": dict(counted.sent), "seconds": round(time.perf_counter() - began, 1)}
        if disturb is not None:
            watcher.join()
    return told


def scenes(gateway: Gateway, n_rows: int, outage_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each scene's name and what came of it."""

    def episode() -> None:
        gateway.refuse(True)
        time.sleep(EPISODE_S)
        gateway.refuse(False)

    def outage() -> None:
        gateway.kill()
        time.sleep(outage_s)
        gateway.start()

    def outage_behind(proxy: LiteLLM) -> None:
        with proxy.nobody_behind():
            time.sleep(outage_s)

    yield "as it is", classify(gateway, n_rows)
    yield "429s", classify(gateway, n_rows, disturb=episode)
    yield "outage", classify(gateway, n_rows, disturb=outage)
    if isinstance(gateway, LiteLLM):
        yield "outage behind it", classify(gateway, n_rows, disturb=lambda: outage_behind(gateway))
    gateway.forget_key()
    yield "wrong key", classify(gateway, n_rows, key=WRONG_KEY)
    gateway.refuse(False)
    gateway.forget_model()
    yield "wrong model", classify(gateway, n_rows, model="wrong")


def main() -> None:
    """Run the scenes of each gateway that is there, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in (AIMock, LLMock, LiteLLM):
        parser.add_argument(f"--{kind.name}", help=f"the program of {kind.name}; left out without it")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--outage-s", type=float, default=60.0)
    given = parser.parse_args()
    skllm_ray.init(local_mode=True)
    failed = False
    for kind in (AIMock, LLMock, LiteLLM):
        program = vars(given)[kind.name]
        if program is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            gateway = kind(program, Path(folder))
            gateway.start()
            try:
                for scene, told in scenes(gateway, given.rows, given.outage_s):
                    sys.stdout.write(f"{kind.name:8} {scene:18} {json.dumps(told)}\n")
                    sys.stdout.flush()
                    failed |= not scene.startswith("wrong") and told["lost"] > 0
            finally:
                gateway.kill()
    sys.exit(failed)


if __name__ == "__main__":
    main()
