"""Whoever waits for a tuning job learns what goes wrong with it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from skllm_ray.config import Secret, SecretRef
from skllm_ray.errors import ConfigurationError, JobFailedError, SkllmRayWarning
from skllm_ray.execution import ray_state, tuning_jobs, tuning_watcher
from skllm_ray.execution.secrets import Sealed
from skllm_ray.execution.tuning_jobs import wait
from skllm_ray.execution.tuning_watcher import Polling, Watcher
from skllm_ray.llm.tuning import ServerJob, TuningJob, TuningSpec
from skllm_ray.llm.tuning.store import open_store

REF = SecretRef("openai_key", ("SKLLM_CONFIG_OPENAI_KEY",), "0" * 12, "my_company.vault:get_secret")
SPEC = TuningSpec(service="custom_url", base_model="m", data_sha256="0" * 64, base_url="http://x/v1", key_ref=REF)
FAST = Polling(0.01, 1.0, 0.01, 0.0)


class Service:
    """Answers with a script's next entry; an exception is raised."""

    def __init__(self, *script):
        self.script = list(script)

    def get(self, job_id):
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return ServerJob(id=job_id, state=answer, model="ft:m" if answer == "succeeded" else None)

    def close(self):
        pass


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_state, "is_initialised", lambda: False)  # one of another folder's tests may run here
    opened = open_store(str(tmp_path))
    opened.write(TuningJob(spec=SPEC, state="running", id="job-1"))
    return opened


def serve(monkeypatch, *script):
    service = Service(*script)
    monkeypatch.setattr(tuning_watcher, "open_service", lambda spec, resolve: service)
    return service


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_record_keeps_the_resolver_and_reads_what_a_later_version_wrote():
    told = SPEC.to_json()
    assert TuningSpec.from_json(told) == SPEC
    told["key_ref"]["of_a_later_version"] = told["of_a_later_version"] = 1
    assert TuningSpec.from_json(told) == SPEC
    del told["key_ref"]["resolver"], told["of_a_later_version"]
    assert TuningSpec.from_json(told).key_ref == replace(REF, resolver="")


@pytest.mark.parametrize("error", [TypeError("odd"), ZeroDivisionError(), JobFailedError("away"), OSError("gone")])
def test_the_watcher_outlives_whatever_a_service_does_and_tells_of_it(store, monkeypatch, error):
    service = serve(monkeypatch, "running", error)
    watcher = Watcher(store.url, FAST)
    until(watcher.troubles)
    assert type(error).__name__ in repr(watcher.troubles()) or "away" in str(watcher.troubles())
    service.script[:] = ["succeeded"]
    until(lambda: store.find("job-1").has_ended)
    assert watcher.troubles() == {}


def test_a_watchers_thread_that_died_is_started_again(store, monkeypatch):
    serve(monkeypatch, "succeeded")
    monkeypatch.setattr(Watcher, "_run", lambda self: None)
    watcher = Watcher(store.url, FAST)
    until(lambda: not watcher._thread.is_alive())
    monkeypatch.undo()
    serve(monkeypatch, "succeeded")
    watcher.wake(Sealed([Secret("sk-1234")]))
    until(lambda: store.find("job-1").has_ended)


def test_waiting_for_a_job_that_the_watcher_cannot_ask_for_ends_with_the_reason(store, monkeypatch):
    serve(monkeypatch, ConfigurationError("No openai_key was found."))
    watcher = Watcher(store.url, FAST)

    def watch(*arguments):
        watcher.wake(Sealed([]))
        until(watcher.troubles)
        return watcher.troubles()

    monkeypatch.setattr(tuning_jobs, "watch", watch)
    monkeypatch.setattr(ray_state, "is_initialised", lambda: True)
    with pytest.raises(ConfigurationError, match="No openai_key was found"):
        wait("job-1", store=store.url, polling=FAST)


def test_a_service_that_is_away_is_told_once_and_waited_for(store, monkeypatch):
    serve(monkeypatch, *[JobFailedError("custom_url: connection refused")] * 3, "running", "succeeded")
    with pytest.warns(SkllmRayWarning, match="Nothing could be learnt of the tuning job job-1 .*refused") as caught:
        assert wait("job-1", store=store.url, polling=FAST).model == "ft:m"
    assert len(caught) == 1


def test_a_look_that_names_less_than_the_one_before_forgets_nothing():
    known = ServerJob(
        "1", "succeeded", model="ft:m", created_at=1.0, started_at=2.0, finished_at=3.0, billable_tokens=9
    )
    job = TuningJob(spec=SPEC).seen(known)
    assert (job.model, job.is_usable) == ("ft:m", True)
    assert job.seen(ServerJob("1", "succeeded")) == replace(job, strikes=1)
