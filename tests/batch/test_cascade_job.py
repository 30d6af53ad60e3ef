"""Batch jobs with a fast and a strong model: what is asked, once; what is promised; what survives a kill."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.job.certified_sample import read_certified
from skllm_ray.batch.promise import PromiseFacts
from skllm_ray.batch.report import write_report
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.cascade import Audit
from skllm_ray.classification import (
    CascadeClassifier,
    CoTGPTClassifier,
    DynamicFewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.cli.job_estimator import prepare
from skllm_ray.cli.job_file import JobFile, without_fast
from skllm_ray.config import Price, SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, NotSupportedError, OutputMismatchError
from skllm_ray.execution.plan import Promised
from skllm_ray.models._base.student_backend import StudentBackend, StudentSpec
from skllm_ray.tasks.base import ChatRequest, Reply, RowError, Usage
from skllm_ray.testing import FakeBackend, FakeSpec
from tests.batch.worlds import read, write

LABELS = ["blue", "green", "red"]
asked = {"fast": Counter(), "strong": Counter()}
script = {}


class Fake(FakeBackend):
    """Says of "i: label p other" the label with the probability p; the strong one says the other label."""

    def complete(self, requests):
        return [self.reply(request) for request in requests]

    def reply(self, request):
        name = self.answer
        text = request.messages[-1]["content"].rpartition("\n```\n")[2].removesuffix("\n```")
        if script.get("die") is not None:
            script["die"] -= 1
            if script["die"] < 0:
                raise KeyboardInterrupt
        asked[name][text] += 1
        error = script.get(name, lambda text: None)(text)
        if error is not None:
            return Reply(error=error, model=name)
        label, p, other = text.split()[1:]
        named = label if name == "fast" else other
        if name == "strong" and asked[name][text] > 1:
            named = script.get("again", lambda text: named)(text)
        rest = math.log((1 - float(p)) / 2)
        told = tuple(math.log(float(p)) if one == named else rest for one in LABELS) if name == "fast" else None
        usage = Usage(10, 1, cost_usd=0.01 if name == "strong" else 0.001)
        explained = {"explanation": f"since {named}"} if request.choices is None else {}
        return Reply(json.dumps({**explained, "label": named}), told, usage, model=name)


@dataclass(frozen=True)
class Spec(FakeSpec):
    """A fast or a strong model."""

    @property
    def model(self):
        return self.answer

    @property
    def capabilities(self):
        prices = {"fast": Price(10.0, 0.0), "strong": Price(100.0, 0.0)}
        return replace(super().capabilities, gives_log_probs=self.answer == "fast", price=prices[self.answer])

    def most_output_tokens(self, bound):
        return bound

    def with_price(self, price):
        return self

    def open(self, resolve_secret):
        return Fake(self.answer)


class Model(ZeroShotGPTClassifier):
    """Asks `Fake`."""

    def _resolve(self):
        return Spec(self.model, key=f"cascade-{self.model}")


class Explaining(CoTGPTClassifier):
    """Asks `Fake` for an explanation too."""

    def _resolve(self):
        return Spec(self.model, key=f"cascade-{self.model}")


class Dynamic(DynamicFewShotGPTClassifier):
    """Shows `Fake` the examples that are most like a text."""

    def _resolve(self):
        return Spec(self.model, key=f"cascade-{self.model}")


@pytest.fixture(autouse=True)
def _world():
    skllm_ray.init(local_mode=True)
    script.clear()
    for counts in asked.values():
        counts.clear()
    yield
    skllm_ray.shutdown()
    SKLLMConfig.reset()


def cascade(**parameters):
    fast, strong = (Model(model=name, on_error="coerce").fit(None, LABELS) for name in ("fast", "strong"))
    return CascadeClassifier(fast, strong, **parameters)


def rows(n_rows, wrong_below=0.5, seed=0):
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.4, 1, n_rows)
    label = rng.integers(0, 3, n_rows)
    other = np.where(sure < wrong_below, (label + 1) % 3, label)
    return [f"{i}: {LABELS[a]} {p:.6f} {LABELS[b]}" for i, (a, p, b) in enumerate(zip(label, sure, other, strict=True))]


def files(tmp_path, texts, n_files=3):
    for number, part in enumerate(np.array_split(np.asarray(texts, object), n_files)):
        write(tmp_path / "in" / f"{number}.parquet", part.tolist())
    return str(tmp_path / "in")


def run(source, output, estimator=None, **options):
    options = {"unit_rows": 100, **options}
    return batch.run(estimator or cascade(), source, str(output), **options)


def truth(texts):
    return np.array([text.split()[3] for text in texts])


def certified(output, **terms):
    folder = open_folder(str(output), StorageOptions.of(None), {})
    return read_certified(folder, Promised(terms.get("share", 0.05), terms.get("confidence", 0.95), None, 0))


def test_both_models_are_asked_about_the_sample_and_the_strong_one_about_the_unsure(tmp_path):
    texts = rows(2000, 0.55, seed=1)
    result = run(files(tmp_path, texts), tmp_path / "out")
    assert (result.complete, result.rows_done, result.errors) == (True, 2000, {})
    found = read(tmp_path / "out")
    stages = found["stage"].value_counts()
    assert stages["sample"] == 300 and stages["fast"] > 1000
    assert max(asked["fast"].values()) == max(asked["strong"].values()) == 1
    assert set(asked["fast"]) == set(texts)
    assert set(asked["strong"]) == set(found["text"][found["stage"] != "fast"])
    assert (found["prediction"] != truth(texts)).mean() <= 0.05
    assert found["fast_label"].tolist() == [text.split()[1] for text in texts]
    known = certified(tmp_path / "out")
    assert (known.certificate.n_rows, known.certificate.n_sampled) == (2000, 300)
    kept = found["stage"] == "fast"
    assert (found["score"][kept] > known.certificate.threshold).all()
    assert (found["score"][found["stage"] == "strong"] <= known.certificate.threshold).all()
    n_strong = (~kept).sum()
    assert result.total.cost_usd == pytest.approx(2000 * 0.001 + n_strong * 0.01)
    assert found["cost_usd"].sum() == pytest.approx(result.total.cost_usd)
    assert result.total.asked == 2000 + n_strong
    assert set(found["stage"][found["id"] < 300]) == {"fast", "strong", "sample"}  # not the first rows of files


def test_missing_texts_are_no_rows(tmp_path):
    texts = rows(1000)
    texts[3], texts[700] = None, " "
    result = run(files(tmp_path, texts), tmp_path / "out")
    assert result.errors == {"missing_text": 2} and certified(tmp_path / "out").certificate.n_rows == 998
    found = read(tmp_path / "out")
    assert found["prediction"].isna().sum() == found["stage"].isna().sum() == 2


@pytest.mark.parametrize("after", [0, 1, 150, 299, 300, 450, 599, 600, 601, 900, 1500, 2000])
def test_a_job_that_is_killed_goes_on_without_asking_or_drawing_anything_twice(tmp_path, after):
    texts = rows(1500, 0.55)
    source = files(tmp_path, texts)
    script["die"] = after
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    before = certified(tmp_path / "out")
    del script["die"]
    result = run(source, tmp_path / "out")
    assert result.complete and (before is None or before.certificate == certified(tmp_path / "out").certificate)
    found = read(tmp_path / "out")
    lost = sum(n - 1 for counts in asked.values() for n in counts.values() if n > 1)
    assert lost <= 256  # this backend tells its answers block by block: one is lost with the process
    assert set(asked["strong"]) == set(found["text"][found["stage"] != "fast"])
    assert (found["prediction"] != truth(texts)).mean() <= 0.05
    again = run(source, tmp_path / "out")
    assert again.this_run.asked == 0 and again.complete


def test_a_failed_strong_answer_is_a_disagreement_and_is_asked_again(tmp_path):
    texts = rows(1000, 0.0)
    refused = set(texts[::50])
    script["strong"] = lambda text: RowError("content_filter", "no") if text in refused else None
    source = files(tmp_path, texts)
    result = run(source, tmp_path / "out")
    known, found = certified(tmp_path / "out"), read(tmp_path / "out")
    n_failed = int((found["error_kind"] == "content_filter").sum())
    assert known.certificate.n_disagreed == n_failed > 0
    assert found["stage"][found["error_kind"].notna()].eq("sample").all() and result.errors == {
        "content_filter": n_failed
    }
    script.clear()
    assert run(source, tmp_path / "out", retry_errors=True).errors == {}
    assert certified(tmp_path / "out").certificate == known.certificate
    assert (read(tmp_path / "out")["prediction"] == truth(texts)).all()


def test_failed_fast_answers_are_escalated(tmp_path):
    texts = rows(1000, 0.0)
    script["fast"] = lambda text: RowError("content_filter", "no") if text in set(texts[::10]) else None
    assert run(files(tmp_path, texts), tmp_path / "out").errors == {}
    found = read(tmp_path / "out")
    assert not (found["stage"][::10] == "fast").any() and (found["prediction"] == truth(texts)).all()


def test_models_that_answer_nothing_end_the_job_with_the_first_block(tmp_path):
    source = files(tmp_path, rows(1000))
    for name in ("fast", "strong"):
        script[name] = lambda text: RowError("content_filter", "no")
        result = run(source, tmp_path / name)
        assert not result.complete and f"the {name} model gave no valid answer" in result.stopped.lower()
        assert asked["strong"].total() <= 512 and asked["fast"].total() <= 512
        script.clear()


def test_a_budget_makes_the_sample_smaller_before_the_first_request(tmp_path):
    texts = rows(2000, 0.55)
    source = files(tmp_path, texts)
    with pytest.raises(ConfigurationError, match=r"budget_usd leaves 1 USD.*the certificate takes at least 5"):
        run(source, tmp_path / "small", budget_usd=1.0)
    assert asked["fast"].total() == asked["strong"].total() == 0
    most = 0.11 * 700 / 1000  # an upper bound of what a row may cost: prompts have fewer bytes
    run(source, tmp_path / "out", budget_usd=200 * most)
    drawn = json.loads((tmp_path / "out" / "_skllm_ray" / "sample.json").read_text())
    assert 59 <= drawn["n_sampled"] < 300
    assert certified(tmp_path / "out").certificate.n_sampled == drawn["n_sampled"]
    run(source, tmp_path / "out", budget_usd=1000.0)  # more money draws no other sample
    assert certified(tmp_path / "out").certificate.n_sampled == drawn["n_sampled"]


def test_the_promise_belongs_to_the_output(tmp_path):
    source = files(tmp_path, rows(1000))
    run(source, tmp_path / "out")
    for other in ({"max_disagreement": 0.1}, {"confidence": 0.9}, {"random_state": 1}, {"n_samples": 400}):
        with pytest.raises(OutputMismatchError, match=next(iter(other))):
            run(source, tmp_path / "out", cascade(**other))
    damaged = tmp_path / "out" / "_skllm_ray" / "certificate.parquet"
    damaged.write_bytes(b"no")
    next((tmp_path / "out").glob("part-*.parquet")).unlink()
    with pytest.raises(OutputMismatchError, match="the sample that the output's promise rests on, cannot be read"):
        run(source, tmp_path / "out")


def test_a_limit_changes_nothing_of_the_sample(tmp_path):
    texts = rows(1500)
    source = files(tmp_path, texts)
    run(source, tmp_path / "out", limit=200)
    known = certified(tmp_path / "out")
    assert known.certificate.n_rows == 1500 and len(read(tmp_path / "out")) == 200
    run(source, tmp_path / "out")
    assert len(read(tmp_path / "out")) == 1500 and certified(tmp_path / "out").certificate == known.certificate
    assert max(asked["strong"].values()) == max(asked["fast"].values()) == 1


def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path):
    source = files(tmp_path, rows(1000))
    with pytest.raises(ConfigurationError, match="n_samples=40: 40 sampled rows of 1,000"):
        run(source, tmp_path / "a", cascade(n_samples=40))
    with pytest.raises(ConfigurationError, match=r"n_samples=100: 100 sampled.*at least 11\d, half of them to certify"):
        run(source, tmp_path / "a", cascade(n_samples=100, score="learned"))
    assert not list((tmp_path / "a" / "_skllm_ray").glob("*.json"))  # other terms can be tried in the same place
    fast, strong = (Model(model=name).fit(None, LABELS) for name in ("fast", "strong"))
    with pytest.raises(NotSupportedError, match="fast=Model"):
        run(source, tmp_path / "a", CascadeClassifier(strong, strong))
    explains = Explaining(model="fast").fit(None, LABELS)
    with pytest.raises(NotSupportedError, match=r"fast=Explaining.*gives no probabilities"):
        run(source, tmp_path / "a", CascadeClassifier(explains, strong))
    student = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["ab", "cd", "ef"], LABELS)
    with pytest.raises(
        NotSupportedError, match="strong=Pipeline: the strong one of a batch cascade must be a language"
    ):
        run(source, tmp_path / "a", CascadeClassifier(fast, student))
    (tmp_path / "in" / "9.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"A certificate is about all rows, and .*9\.parquet cannot be read"):
        run(source, tmp_path / "b")
    assert asked["fast"].total() == asked["strong"].total() == 0


def test_equal_texts_are_asked_once_in_a_unit_and_the_sample_serves_all(tmp_path):
    texts = rows(400, 0.5) * 3
    result = run(files(tmp_path, texts), tmp_path / "out")
    found = read(tmp_path / "out")
    assert result.complete and (found["prediction"] != truth(texts)).mean() <= 0.05
    sampled = set(found["text"][found["stage"] == "sample"])
    assert all(asked["strong"][text] == asked["fast"][text] == 1 for text in sampled)


def test_the_answers_of_the_sample_are_in_the_parts_with_what_they_cost(tmp_path):
    texts = rows(1000, 0.55)
    run(files(tmp_path, texts), tmp_path / "out")
    found = read(tmp_path / "out")
    of_sample = found[found["stage"] == "sample"]
    assert of_sample["cost_usd"].to_numpy() == pytest.approx(np.full(300, 0.011))
    told = pq.read_schema(tmp_path / "out" / "_skllm_ray" / "certificate.parquet").metadata[b"skllm_ray"]
    assert json.loads(told)["cost_usd"] == pytest.approx(300 * 0.011)
    assert isinstance(found, pd.DataFrame)


# --- models of several steps, explanations, a learned score -------------------------------------------------------


@pytest.mark.parametrize("dynamic", [("fast",), ("strong",), ("fast", "strong")])
def test_dynamic_models_choose_examples_for_the_rows_that_they_are_asked_about(tmp_path, dynamic):
    texts = rows(1200, 0.55)
    made = {}
    for name in ("fast", "strong"):
        if name in dynamic:
            model = Dynamic(model=name, n_examples=1, vectorizer=CountVectorizer(token_pattern=r"[a-z]+"))
            made[name] = model.set_params(on_error="coerce").fit(texts[:9], truth(texts[:9]))
        else:
            made[name] = Model(model=name, on_error="coerce").fit(None, LABELS)
    source = files(tmp_path, texts)
    script["die"] = 700
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CascadeClassifier(**made, audit_share=0.05))
    del script["die"]
    result = run(source, tmp_path / "out", CascadeClassifier(**made, audit_share=0.05))
    found = read(tmp_path / "out")
    assert result.complete and (found["prediction"] != truth(texts)).mean() <= 0.05
    stages = found["stage"].value_counts()
    assert set(stages.index) == {"fast", "strong", "sample", "audit"} and stages["fast"] > 400
    assert set(asked["strong"]) == set(found["text"][found["stage"] != "fast"])
    assert found["fast_label"].tolist() == [text.split()[1] for text in texts]
    assert found["cost_usd"].sum() == pytest.approx(1200 * 0.001 + (found["stage"] != "fast").sum() * 0.01)
    told = estimate_job(batch.job_for(CascadeClassifier(**made), source, str(tmp_path / "other")), 200)
    assert 0.2 < told.strong_share[0] < told.strong_share[1] < 0.9 and told.cost_usd[1] > told.cost_usd[0]


def test_a_strong_model_that_explains_itself_does_so_where_it_is_asked(tmp_path):
    texts = rows(1000, 0.55)
    fast = Model(model="fast", on_error="coerce").fit(None, LABELS)
    strong = Explaining(model="strong", on_error="coerce").fit(None, LABELS)
    result = run(files(tmp_path, texts), tmp_path / "out", CascadeClassifier(fast, strong, audit_share=0.05))
    found = read(tmp_path / "out")
    assert result.complete and not result.alarm and (found["prediction"] != truth(texts)).mean() <= 0.05
    kept = found["stage"] == "fast"
    assert kept.sum() > 300 and found["explanation"][kept].isna().all()
    assert (found["explanation"][~kept] == "since " + found["prediction"][~kept]).all()
    assert found["fast_label"].tolist() == [text.split()[1] for text in texts]
    sample = found[found["stage"] == "sample"]
    assert certified(tmp_path / "out").certificate.n_disagreed == (sample["prediction"] != sample["fast_label"]).sum()


def test_a_job_learns_a_score_from_half_of_the_sample(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 3000)  # the fast one is sure of "red", and often wrong about it
    sure = np.where(label == 2, rng.uniform(0.8, 1, 3000), rng.uniform(0.5, 0.9, 3000))
    other = np.where((label == 2) & (np.arange(3000) % 2 == 0), 0, label)
    texts = [
        f"{i}: {LABELS[a]} {p:.5f} {LABELS[b]}" for i, (a, p, b) in enumerate(zip(label, sure, other, strict=True))
    ]
    source, n_strong = files(tmp_path, texts), {}
    for score in ("probability", "learned"):
        result = run(source, tmp_path / score, cascade(score=score, n_samples=600))
        found = read(tmp_path / score)
        assert result.complete and (found["prediction"] != truth(texts)).mean() <= 0.05
        n_strong[score] = (found["stage"] != "fast").sum()
    assert n_strong["learned"] < 0.7 * n_strong["probability"]
    terms = Promised(0.05, 0.95, 600, 0, learns_score=True)
    known = read_certified(open_folder(str(tmp_path / "learned"), StorageOptions(), {}), terms)
    assert (known.certificate.n_sampled, known.certificate.n_rows) == (300, 2700) and len(known.positions) == 600
    kept = found["stage"] == "fast"
    assert (found["score"][kept] > known.certificate.threshold).all()
    assert (found["score"][found["stage"] == "strong"] <= known.certificate.threshold).all()
    for part in (tmp_path / "learned").glob("part-*"):
        part.unlink()
    asked["strong"].clear()
    run(source, tmp_path / "learned", cascade(score="learned", n_samples=600))
    again = read(tmp_path / "learned")
    assert (again["score"] == found["score"]).all() and (again["stage"] == found["stage"]).all()


# --- how far the strong model agrees with itself, and how often these rows were certified --------------------------


def test_the_strong_model_is_asked_again_about_some_rows_and_it_is_told_how_often_it_agrees(tmp_path):
    texts = rows(1000, 0.5)
    changed = []
    script["again"] = lambda text: changed.append(text) or ("red" if len(changed) <= 3 else text.split()[3])
    source = files(tmp_path, texts)
    result = run(source, tmp_path / "out", cascade(n_repeats=40))
    found, known = read(tmp_path / "out"), certified(tmp_path / "out").certificate
    twice = {text for text, n in asked["strong"].items() if n == 2}
    assert len(twice) == 40 and twice <= set(found["text"][found["stage"] == "sample"])
    assert asked["strong"].total() == (found["stage"] != "fast").sum() + 40
    assert max(asked["fast"].values()) == 1
    assert (found["prediction"][found["stage"] == "sample"] == truth(found["text"][found["stage"] == "sample"])).all()
    n_changed = sum(text.split()[3] != "red" for text in changed[:3])
    assert (known.n_repeated, known.n_changed) == (40, n_changed)
    told = f"Asked again about 40 sampled rows, it gave {100 * (1 - n_changed / 40):.3g}% of them the same label"
    assert told in result.promise["promise"]
    assert result.total.cost_usd == pytest.approx(1000 * 0.001 + ((found["stage"] != "fast").sum() + 40) * 0.01)
    again = run(source, tmp_path / "out", cascade(n_repeats=40))
    assert again.this_run.asked == 0 and again.promise == result.promise
    job = batch.job_for(cascade(n_repeats=40), source, str(tmp_path / "other"))
    bare = batch.job_for(cascade(), source, str(tmp_path / "other"))
    assert estimate_job(job).requests == estimate_job(bare).requests + 40


def test_rows_are_asked_twice_with_what_the_budget_leaves_alone(tmp_path):
    source = files(tmp_path, rows(1000, 0.5))
    most = 0.11 * 700 / 1000
    run(source, tmp_path / "out", cascade(n_repeats=40), budget_usd=200 * most)
    assert json.loads((tmp_path / "out" / "_skllm_ray" / "sample.json").read_text())["n_repeats"] < 3
    run(source, tmp_path / "rich", cascade(n_repeats=40), budget_usd=1000.0)
    assert json.loads((tmp_path / "rich" / "_skllm_ray" / "sample.json").read_text())["n_repeats"] == 40


def test_a_kill_while_rows_are_asked_again_pays_for_little_twice(tmp_path):
    source = files(tmp_path, rows(1000, 0.5))
    script["die"] = 615
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", cascade(n_repeats=40))
    del script["die"]
    assert run(source, tmp_path / "out", cascade(n_repeats=40)).complete
    assert certified(tmp_path / "out").certificate.n_repeated == 40
    assert sum(n - 1 for n in asked["strong"].values() if n > 1) <= 2 * 40


def test_certificates_for_the_same_rows_are_counted_over_outputs_beside_each_other(tmp_path):
    texts = rows(1000, 0.5)
    source = files(tmp_path, texts)
    assert "certificates" not in run(source, tmp_path / "outs" / "a").promise["promise"]
    assert "certificates" not in run(source, tmp_path / "outs" / "a2").promise["promise"]  # the same sample: no other
    assert "one of 2 certificates" in run(source, tmp_path / "outs" / "b", cascade(random_state=1)).promise["promise"]
    third = run(source, tmp_path / "outs" / "c", cascade(max_disagreement=0.1))
    assert "one of 3 certificates for these rows" in third.promise["promise"]
    assert "picked among them for what it says holds with 85% at least" in third.promise["promise"]
    other = files(tmp_path / "x", rows(1000, 0.5, seed=1))
    assert "certificates" not in run(other, tmp_path / "outs" / "d", cascade(random_state=1)).promise["promise"]


# --- what is told -------------------------------------------------------------------------------------------------


def test_an_estimate_is_a_range_and_a_pilot_makes_it_narrow(tmp_path):
    texts = rows(3000, 0.5)
    job = batch.job_for(cascade(), files(tmp_path, texts), str(tmp_path / "out"))
    blind = estimate_job(job)
    assert blind.strong_share == (pytest.approx(0.1), 1.0) and asked["strong"].total() == 0
    piloted = estimate_job(job, 300)
    low, high = piloted.strong_share
    assert 300 == asked["strong"].total() == asked["fast"].total() and 0.1 < low < high < 0.7
    assert "strong model" in piloted.facts() and piloted.cost_usd[0] < piloted.cost_usd[1] < blind.cost_usd[1]
    run(files(tmp_path, texts), tmp_path / "out")
    assert low <= (read(tmp_path / "out")["stage"] != "fast").mean() <= high


def test_audited_rows_are_counted_and_too_many_that_differ_are_an_alarm(tmp_path):
    texts = rows(2000, 0.5)
    source = files(tmp_path, texts)
    result = run(source, tmp_path / "out", cascade(audit_share=0.1))
    found = read(tmp_path / "out")
    audited = found[found["stage"] == "audit"]
    assert 50 < len(audited) < 250 and (audited["prediction"] == truth(audited["text"])).all()
    differ = int((audited["prediction"] != audited["fast_label"]).sum())
    assert f"Of {len(audited):,} audited labels, {differ} differed" in result.promise["audit"] and not result.alarm
    assert "at most 5% of these 2,000 rows" in result.promise["promise"]
    known = certified(tmp_path / "out")
    facts = PromiseFacts(known, {"fast": 900, "audit": 100}, Audit(1000, 1000, 100, 30, 0.05, 0.95))
    assert facts.audit.alarm and "certify anew" in facts.facts["audit"]


def test_the_report_shows_the_promise_and_its_curve(tmp_path):
    pytest.importorskip("matplotlib")
    run(files(tmp_path, rows(1000, 0.55)), tmp_path / "out", cascade(audit_share=0.05))
    write_report(str(tmp_path / "out"), str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "at most 5% of these 1,000 rows" in page and "audited labels" in page
    assert "% of the sampled rows whose fast label would be kept" in page


# --- the command line ---------------------------------------------------------------------------------------------


def job_file(**given):
    return JobFile(task="classify", input=["in"], output="out", labels=["good", "bad"], model="gguf::demo", **given)


def test_the_command_lines_settings_make_a_cascade():
    made = prepare(
        job_file(fast_model="gguf::demo", max_disagreement=0.1, confidence=0.9, n_samples=200, random_state=7)
    )
    assert isinstance(made, CascadeClassifier) and made.model == "gguf::demo"
    given = made.get_params(deep=False)
    assert [given[name] for name in ("max_disagreement", "confidence", "n_samples", "audit_share", "random_state")] == [
        0.1, 0.9, 200, 0.005, 7,
    ]  # fmt: skip
    assert isinstance(prepare(job_file()), ZeroShotGPTClassifier)
    alone = without_fast(job_file(fast_model="gguf::demo", max_disagreement=0.1, limit=3))
    assert (alone.fast_model, alone.limit, isinstance(prepare(alone), ZeroShotGPTClassifier)) == (None, 3, True)
    priced = job_file(fast_model="custom_url::m", fast_input_price=0.5, fast_request_options={"seed": 1})
    fast = prepare(priced.model_copy(update={"gpt_url": "http://127.0.0.1:1/v1"})).fast
    assert fast.request_options == {"seed": 1} and fast._spec().capabilities.price.input == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_disagreement": 0.1}, "max_disagreement is given without fast_model"),
        ({"audit_share": 0.1}, "audit_share is given without fast_model"),
        ({"fast_model": "gguf::demo", "task": "summarize"}, "fast_model is given beside summarize"),
        ({"fast_model": "gguf::demo", "estimator": "x", "task": None}, "fast_model is given beside an estimator"),
    ],
)
def test_settings_of_no_fast_model_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        prepare(job_file().model_copy(update=given) if "task" in given else job_file(**given))


def test_sets_of_labels_in_a_job(tmp_path):
    texts = [f"{word} product, number {i}" for i in range(40) for word in ("Late", "Dear")]
    made = [MultiLabelZeroShotGPTClassifier(model="gguf::demo", max_labels=2, on_error="coerce") for _ in range(2)]
    fast, strong = (one.fit(None, ["delivery", "price", "quality"]) for one in made)
    source = write(tmp_path / "in.parquet", texts)
    result = batch.run(CascadeClassifier(fast, strong, n_samples=60), source, str(tmp_path / "out"))
    found = read(tmp_path / "out")
    assert result.complete and found["stage"].value_counts().to_dict() == {"sample": 60, "fast": 20}
    assert [list(one) for one in found["prediction"]] == [list(one) for one in found["fast_label"]]
    assert ((found["score"] > 0) & (found["score"] <= 1)).all()


def test_a_student_is_the_fast_model_of_a_job(tmp_path):
    texts = rows(1500, 0.0)
    student = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(C=10))
    student.fit(texts[:200], truth(texts[:200]))
    strong = Model(model="strong", on_error="coerce").fit(None, LABELS)
    source = files(tmp_path, texts)
    result = run(source, tmp_path / "out", CascadeClassifier(student, strong))
    found = read(tmp_path / "out")
    assert result.complete and (found["prediction"] != truth(texts)).mean() <= 0.05
    assert set(asked["strong"]) == set(found["text"][found["stage"] != "fast"]) and len(asked["strong"]) < 1000
    assert found["fast_label"].tolist() == student.predict(texts).tolist()
    np.testing.assert_allclose(found["score"], student.predict_proba(texts).max(axis=1))
    assert found["cost_usd"][found["stage"] == "fast"].sum() == 0
    other = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(C=10))
    other.fit(texts[200:400], truth(texts[200:400]))
    with pytest.raises(OutputMismatchError):
        run(source, tmp_path / "out", CascadeClassifier(other, strong))


def test_a_student_that_fails_escalates_its_rows():
    backend = StudentBackend(StudentSpec(LogisticRegression()))
    (reply,) = backend.complete([ChatRequest(({"role": "user", "content": "x"},))])
    assert reply.error.kind == "bad_request" and "NotFittedError" in reply.error.message
    with pytest.raises(NotSupportedError, match="gives labels, not vectors"):
        backend.embed(["x"])
