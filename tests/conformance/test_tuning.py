"""OpenAI's fine-tuning as aimock speaks it, Cloud Storage as gcp-storage-emulator does."""

from __future__ import annotations

import pytest

from skllm_ray import tuning
from skllm_ray.classification import GPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.tuning.store import open_store
from skllm_ray.llm.vertex.gcs import open_bucket
from tests.conformance.conftest import free_port, serving
from tests.tuning_worlds import LABELS, TEXTS, google_environment, job_of, service_of

pytestmark = pytest.mark.usefixtures("local_mode")


def test_openai_fine_tuning(aimock, tmp_path):
    with aimock() as url:
        SKLLMConfig.set_gpt_url(f"{url}/v1")
        SKLLMConfig.set_tuning_store(str(tmp_path))
        clf = GPTClassifier("custom_url::gpt-4o-mini-2024-07-18", key="sk-x", n_epochs=2, poll_s=0.05, grace_s=5)
        job = clf.submit_tuning(TEXTS, LABELS)
        again = clf.submit_tuning(TEXTS, LABELS)
        ended = tuning.wait(job.key, timeout_s=60, key="sk-x", polling=tuning.Polling(0.05, longest_s=0.2))
        assert again.id == job.id and job.id.startswith("ftjob")
        assert ended.is_usable and ended.model.startswith("ft:")
        assert GPTClassifier.from_job(job.id, key="sk-x").tuned_model_ == ended.model
        other = clf.submit_tuning(TEXTS, LABELS, new=True)
        assert other.id != job.id
        assert tuning.cancel(other.key, key="sk-x").state in {"cancelled", "succeeded"}


def test_a_bucket_that_ignores_preconditions_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("gcp_storage_emulator", reason="install gcp-storage-emulator: `make conformance` does")
    import sys

    class Place:
        root = f"http://127.0.0.1:{free_port()}"

    for name, value in google_environment(Place, tmp_path).items():  # type: ignore[arg-type]
        monkeypatch.setenv(name, value)
    port = Place.root.rpartition(":")[2]
    run = "from gcp_storage_emulator.__main__ import main; main()"
    command = [sys.executable, "-c", run, "start", "--host", "127.0.0.1", "--port", port, "--in-memory"]
    # It ignores ifGenerationMatch, so that two drivers could both believe to be the first: refused, not trusted.
    with (
        serving([*command, "--default-bucket", "bucket"], Place.root, "/storage/v1/b"),
        pytest.raises(ConfigurationError, match="ignores if_generation_match=0"),
    ):
        spec, data = job_of("vertex", Place)  # type: ignore[arg-type]
        uploaded = service_of(spec).upload(data, spec.key)  # the data set itself needs no precondition
        assert uploaded.startswith("gs://bucket/")
        bucket = open_bucket(None, "bucket")
        assert bucket.blob(uploaded.removeprefix("gs://bucket/")).download_as_bytes() == data
        open_store("gs://bucket/jobs")
