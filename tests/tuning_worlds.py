"""A fake server with everything around it that a submission needs, and processes that die on purpose."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from skllm_ray.llm.submissions import GracePeriod, Service, submit
from skllm_ray.llm.tuning import TuningJob, TuningSpec
from skllm_ray.llm.tuning.examples import example_line
from skllm_ray.llm.tuning.store import open_store
from skllm_ray.llm.tuning_services import open_service, with_data
from skllm_ray.tasks.base import ChatRequest
from skllm_ray.testing.tuning_server import TuningServer

TEXTS = [f"text {i}" for i in range(12)]
LABELS = ["good", "bad"] * 6
QUICK = GracePeriod(grace_s=1.0, look_every_s=0.1)


@functools.cache
def private_key() -> str:
    """Return a key of a service account; to make one takes long."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def google_environment(server: TuningServer, folder: Path) -> dict[str, str]:
    """Return the environment in which Google's SDKs talk to `server`, with credentials that they exchange there."""
    account = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": private_key(),
        "client_email": "tester@project.iam.gserviceaccount.com",
        "token_uri": f"{server.root}/token",
    }
    path = folder / "account.json"
    path.write_text(json.dumps(account))
    return {
        "GOOGLE_APPLICATION_CREDENTIALS": str(path),
        "GOOGLE_VERTEX_BASE_URL": server.root,
        "STORAGE_EMULATOR_HOST": server.root,
        "SKLLM_CONFIG_OPENAI_KEY": "sk-local",
        "no_proxy": "127.0.0.1,localhost",
    }


def job_of(service: str, server: TuningServer, **more: object) -> tuple[TuningSpec, bytes]:
    """Return a whole job for `service`, and its data set."""
    if service == "vertex":
        spec = TuningSpec(
            service="vertex", base_model="gemini-3.5-flash", data_sha256="", project="project",
            location="europe-west4", bucket="bucket", hyper_parameters=(("adapter_size", 4), ("epoch_count", 2)),
        )  # fmt: skip
    else:
        url = server.root if service == "azure" else server.url
        spec = TuningSpec(
            service=service, base_model="gpt-4.1-mini", data_sha256="", base_url=url, suffix="skllm",
            api_version="2024-10-21" if service == "azure" else None, hyper_parameters=(("n_epochs", 2),),
        )  # fmt: skip
    pairs = zip(TEXTS, LABELS, strict=True)
    lines = [
        example_line(spec.service, ChatRequest(({"role": "user", "content": text},)), label) for text, label in pairs
    ]
    return with_data(spec, lines)


def service_of(spec: TuningSpec) -> Service:
    return open_service(spec, lambda reference: "sk-local")


def submit_and_die(service: str, root: str, store_url: str, at: str, how: str, environment: dict[str, str]) -> None:
    """Run in a process of its own: submit, and die when the step `at` is reached."""
    os.environ.update(environment)
    server = TuningServer.__new__(TuningServer)
    server.root, server.url = root, f"{root}/v1"
    spec, data = job_of(service, server)

    def die(step: str) -> None:
        if step == at and how == "os._exit":
            os._exit(9)
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    submit(TuningJob(spec=spec), data, open_store(store_url), service_of(spec), patience=QUICK, on_step=die)


def submit_and_tell(service: str, root: str, store_url: str, environment: dict[str, str], told: str) -> None:
    """Run in a process of its own: submit, and write the job's ID, or the error's name, to the file `told`."""
    os.environ.update(environment)
    server = TuningServer.__new__(TuningServer)
    server.root, server.url = root, f"{root}/v1"
    spec, data = job_of(service, server)
    try:
        job = submit(
            TuningJob(spec=spec), data, open_store(store_url), service_of(spec), patience=GracePeriod(20.0, 0.1)
        )
        Path(told).write_text(job.id or "")
    except Exception as error:  # noqa: BLE001  whatever it is, its name is told
        Path(told).write_text(type(error).__name__)
