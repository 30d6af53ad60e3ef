"""The tunable estimators against a server that really learns the data set: real SDKs over real sockets."""

from __future__ import annotations

import json
from datetime import date

import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skllm_ray import tuning
from skllm_ray.classification import GPTClassifier, MultiLabelGPTClassifier, VertexClassifier
from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
    NotSupportedError,
    SkllmRayError,
    SkllmRayWarning,
)
from skllm_ray.llm.tuning_services import resolve_tuning
from skllm_ray.testing.tuning_server import SubmitFault, TuningServer
from skllm_ray.text2text import TunableGPTText2Text, TunableVertexText2Text
from tests.tuning_worlds import LABELS, TEXTS, google_environment

QUICK = {"poll_s": 0.02, "grace_s": 1.0}


@pytest.fixture
def server(tmp_path, monkeypatch, local_mode):
    with TuningServer() as running:
        for name, value in google_environment(running, tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "europe-west4")
        SKLLMConfig.set_google_bucket("bucket")
        SKLLMConfig.set_gpt_url(running.url)
        SKLLMConfig.set_tuning_store(str(tmp_path / "store"))
        yield running


def gpt(**params):
    return GPTClassifier("custom_url::gpt-4.1-mini", **{**QUICK, **params})


def vertex(**params):
    return VertexClassifier(**{**QUICK, **params})


@pytest.mark.parametrize("make", [gpt, vertex])
def test_fit_buys_one_job_and_predicts_with_its_model(server, make):
    clf = make()
    assert clf.fit(TEXTS, LABELS) is clf
    assert clf.predict(TEXTS).tolist() == LABELS
    assert clf.tuning_job_id_ == server.ids[0] and clf.tuned_model_
    make().fit(TEXTS, LABELS)  # the same content
    assert server.n_jobs == server.n_submissions == 1
    again = type(clf).from_job(clf.tuning_job_id_)
    assert again.predict(TEXTS).tolist() == LABELS and again.classes_.tolist() == ["bad", "good"]
    make().fit(TEXTS, LABELS, new=True)
    assert server.n_jobs == 2
    with pytest.raises(NotFittedError):
        clone(clf).predict(TEXTS)


def test_submit_tuning_returns_at_once(server):
    server.states = ("PENDING", *["RUNNING"] * 3, "SUCCEEDED")
    job = gpt().submit_tuning(TEXTS, LABELS)
    assert not job.has_ended and job.id == server.ids[0]
    with pytest.raises(JobFailedError, match="is still"):
        GPTClassifier.from_job(job.id)
    assert tuning.wait(job.key, timeout_s=60, polling=tuning.Polling(0.02)).is_usable
    assert [found.id for found in tuning.list_jobs()] == [job.id]
    with pytest.raises(InputError, match=r"belongs to GPTClassifier"):
        VertexClassifier.from_job(job.id)


def test_several_labels_and_texts(server):
    lists = [["good"], ["bad", "ugly"]] * 6
    clf = MultiLabelGPTClassifier("custom_url::gpt-4.1-mini", max_labels=2, **QUICK).fit(TEXTS, lists)
    assert clf.predict(TEXTS[:2]).tolist() == [["good", ""], ["bad", "ugly"]]
    answers = [f"short {i}" for i in range(12)]
    for writer in (TunableGPTText2Text("custom_url::gpt-4.1-mini", **QUICK), TunableVertexText2Text(**QUICK)):
        assert writer.fit(TEXTS, answers).transform(TEXTS).tolist() == answers


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (TEXTS, ["good"] * 12, "single label"),
        ([*TEXTS[:11], ""], LABELS, r"1 missing or blank text\(s\), at position\(s\) 11"),
        ([*TEXTS[:11], None], LABELS, "missing or blank"),
        (TEXTS, LABELS[:5], "12 texts but y has 5"),
        (None, LABELS, "X is None"),
        (["x" * 600_000, *TEXTS[1:]], LABELS, r"X\[0\] makes an example of about"),
        (TEXTS, [0, 1] * 6, "a number has none"),
    ],
)
@pytest.mark.parametrize("make", [gpt, vertex])
def test_bad_data_is_refused_before_anything_is_sent(server, make, X, y, message):
    with pytest.raises(InputError, match=message):
        make().fit(X, y)
    assert server.n_submissions == 0 and not server.objects and not server.files


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bucket": "no-such-bucket"}, "no-such-bucket"),
        ({"bucket": "read-only"}, "read-only"),
        ({"location": "global"}, "is no region"),
        ({"adapter_size": 3}, "adapter_size must be 1, 2, 4, 8, 16 or 32 or None"),
        ({"n_update_steps": 0}, "n_update_steps must be an int of at least 1"),
    ],
)
def test_a_wrong_place_is_refused_before_anything_is_sent(server, params, message):
    server.buckets["read-only"] = False
    with pytest.raises(ConfigurationError, match=message):
        vertex(**params).fit(TEXTS, LABELS)
    assert server.n_submissions == 0


@pytest.mark.parametrize(
    ("family", "model", "today", "message"),
    [
        ("vertex", "text-bison@002", None, "cannot be tuned any more: Google ended it. Use gemini-3.5"),
        ("gpt", "gpt-3.5-turbo", None, "cannot be tuned any more. Use gpt-4.1-mini"),
        ("gpt", "gpt-4.1-mini", date(2027, 1, 6), "takes no new tuning jobs since 2027-01-06.*Use VertexClassifier"),
        ("gpt", "gguf::demo", None, "of this provider cannot be tuned"),
    ],
)
def test_what_cannot_be_tuned_any_more_says_what_can(server, family, model, today, message):
    SKLLMConfig.reset_gpt_url()
    with pytest.raises(NotSupportedError, match=message):
        resolve_tuning(model, family, {}, key="sk-x", today=today)


@pytest.mark.parametrize(
    ("make", "state"),
    [(make, state) for make in (gpt, vertex) for state in ("FAILED", "CANCELLED")] + [(vertex, "EXPIRED")],
)
def test_a_job_that_ends_badly_is_an_error_and_not_bought_again(server, make, state):
    server.states = ("PENDING", state)
    with pytest.raises(JobFailedError, match=f"ended as {state.lower()}"):
        make().fit(TEXTS, LABELS)
    with pytest.raises(JobFailedError, match="fit\\(X, y, new=True\\) buys another"):
        make().fit(TEXTS, LABELS)
    assert server.n_jobs == 1


def test_paused_is_waited_for_and_a_partial_success_is_used_with_a_warning(server):
    server.states = ("QUEUED", "PAUSED", "UPDATING", "PARTIALLY_SUCCEEDED")
    with pytest.warns(SkllmRayWarning, match="only succeeded partially"):
        clf = vertex().fit(TEXTS, LABELS)
    assert clf.predict(TEXTS[:1]).tolist() == LABELS[:1]


@pytest.mark.parametrize("make", [gpt, vertex])
def test_success_without_a_model_ends_as_an_error(server, make):
    server.gives_models = False
    with pytest.raises(JobFailedError):
        make().fit(TEXTS, LABELS)


@pytest.mark.parametrize("make", [gpt, vertex])
def test_a_job_that_somebody_deleted_ends_as_deleted(server, make):
    server.states = ("PENDING", "RUNNING")
    job = make().submit_tuning(TEXTS, LABELS)
    server.delete_job(server.ids[0])
    assert tuning.wait(job.key, timeout_s=60, polling=tuning.Polling(0.02)).state == "deleted"


@pytest.mark.parametrize("make", [gpt, vertex])
def test_a_cancel_that_loses_the_race_is_a_success(server, make):
    server.states = ("PENDING", "SUCCEEDED")
    job = make().submit_tuning(TEXTS, LABELS)
    tuning.wait(job.key, timeout_s=60, polling=tuning.Polling(0.02))
    assert tuning.cancel(job.key).state == "succeeded"


@pytest.mark.parametrize("make", [gpt, vertex])
@pytest.mark.parametrize("fault", [SubmitFault.REFUSED, SubmitFault.FORBIDDEN])
def test_a_refused_job_is_an_error_and_may_be_submitted_again(server, make, fault):
    server.faults.append(fault)
    with pytest.raises(SkllmRayError):
        make().fit(TEXTS, LABELS)
    assert server.n_jobs == 0
    assert make().fit(TEXTS, LABELS).predict(TEXTS[:1]).tolist() == LABELS[:1]
    assert server.n_jobs == 1


@pytest.mark.parametrize("make", [gpt, vertex])
def test_the_data_goes_when_asked(server, make):
    make(delete_data=True).fit(TEXTS, LABELS)
    assert not [name for name in server.objects if name.endswith(".jsonl")] and not server.files
    make(delete_data=False).fit([*TEXTS, "one more"], [*LABELS, "good"])
    assert server.objects or server.files


def test_no_key_is_kept_with_a_job(server, tmp_path):
    gpt(key="sk-planted-0123456789").fit(TEXTS, LABELS)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-planted" not in kept
    assert b"sk-planted" not in json.dumps([str(job) for job in tuning.list_jobs()]).encode()


def test_the_command_line(server, tmp_path):
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(tmp_path / "data.csv", index=False)

    def run(*arguments, code=0):
        done = CliRunner().invoke(main, ["tune", *arguments])
        assert done.exit_code == code, done.output
        return done.output

    assert "No tuning jobs." in run("list")
    order = ["submit", "GPTClassifier", "--data", str(tmp_path / "data.csv"), "--base-model", "custom_url::m"]
    assert "ftjob-1" in run(*order, "--epochs", "2")
    assert "ftjob-1" in run(*order, "--epochs", "2")
    [job] = [json.loads(line) for line in run("list", "--json").splitlines()]
    assert job["id"] == "ftjob-1"
    assert "ftjob-1" in run("status", "ftjob-1")
    assert "succeeded" in run("status", "ftjob-1") + run("status", "ftjob-1")
    assert "succeeded" in run("wait", job["key"], "--timeout", "100")
    assert "ftjob-1" in run("list")
    assert "succeeded" in run("cancel", "ftjob-1")
    assert "is ftjob-1 already" in run("adopt", "ftjob-1", "ftjob-9", code=1)
    assert "forgotten" in run("forget", "ftjob-1", "--yes")
    assert "label" in run(
        "submit", "GPTClassifier", "--data", str(tmp_path / "data.csv"), "--answer-column", "x", code=1
    )
    assert server.n_jobs == 1


def test_azure_needs_a_deployment_of_what_it_tuned(server):
    SKLLMConfig.set_azure_api_base(server.root)
    clf = GPTClassifier("azure::gpt-4.1-mini", key="sk-local", **QUICK).fit(TEXTS, LABELS)
    assert server.n_jobs == 1 and clf.tuned_model_
    with pytest.raises(NotSupportedError, match="once it is deployed"):
        clf.predict(TEXTS)
    again = GPTClassifier("azure::gpt-4.1-mini", key="sk-local", **QUICK).fit(TEXTS, LABELS)
    assert again.tuning_job_id_ == clf.tuning_job_id_ and server.n_jobs == 1
