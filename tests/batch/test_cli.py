"""The command line: job files, estimates, comparisons, exit codes."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import jsonschema
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner, Result

from skllm_ray import batch
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.cli import main
from skllm_ray.cli.job_estimator import prepare
from skllm_ray.cli.job_file import JobFile, job_schema, read_job
from skllm_ray.cli.labelled_file import read_columns
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault, prompt_of
from tests.batch.worlds import LABELS, api_classifier, read, texts, write

pytestmark = pytest.mark.usefixtures("local_mode")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_job_file_and_flags_over_it(tmp_path):
    source = write(tmp_path / "in.parquet", [f"I love it {i}" for i in range(30)])
    job = {"task": "classify", "model": "gguf::demo", "input": [source], "output": str(tmp_path / "out")}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**job, "labels": ["positive", "negative"], "limit": 10}))
    jsonschema.validate(yaml.safe_load(path.read_text()), job_schema())
    first = call("run", "--config", path)
    assert (first.exit_code, len(read(tmp_path / "out"))) == (0, 10), first.output
    assert "run it without --limit" in first.output
    second = call("run", "--config", path, "--limit", 20, "--json")
    assert second.exit_code == 0
    assert json.loads(second.stdout.splitlines()[-1])["rows_done"] == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "gguf::demo"], "labels is missing"),
        (["--model", "gguf::demo", "--labels", "a"], "single label"),
        (["--model", "nope::x", "--labels", "a,b"], "Unknown namespace"),
        (["--model", "gguf::nope", "--labels", "a,b"], "nope"),
        (["--model", "gguf::demo", "--labels", "a,b", "--text-column", "no"], "no column 'no'"),
        (["--model", "gguf::demo", "--labels", "a,b", "--storage-options", "{"], "must be JSON"),
        (["--model", "gguf::demo", "--labels", "a,b", "--limit", "0"], "limit"),
        (["--model", "gguf::demo", "--labels", "a,b", "--labels-file", "/nowhere"], "labels_file"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, flags, message):
    source = write(tmp_path / "in.parquet", texts(5))
    done = call("run", "classify", "--input", source, "--output", tmp_path / "out", *flags)
    assert done.exit_code in {1, 2}
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_misspelt_setting_is_named(tmp_path):
    (tmp_path / "job.yaml").write_text("task: classify\nmodle: x\nlimit: many\n")
    with pytest.raises(ValueError, match=r"limit: .*; got 'many'.*modle: is no setting|modle: is no setting.*limit"):
        read_job(str(tmp_path / "job.yaml"), {})


def test_an_estimator_from_a_notebook(tmp_path):
    joblib.dump(ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"]), tmp_path / "clf.joblib")
    source = write(tmp_path / "in.parquet", texts(5))
    done = call("run", "--estimator", tmp_path / "clf.joblib", "--input", source, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(read(tmp_path / "out")) == 5


def test_what_remains_is_told_by_the_exit_code(tmp_path):
    write(tmp_path / "in/a.parquet", texts(5))
    (tmp_path / "in/b.parquet").write_bytes(b"no Parquet")
    flags = ["--model", "gguf::demo", "--labels", "a,b"]
    done = call("run", "classify", "--input", tmp_path / "in", "--output", tmp_path / "out", *flags)
    assert done.exit_code == 3
    assert "b.parquet:Arrow" in re.sub(r"[\s│]", "", done.output)
    assert "run the same command again" in done.output


def test_few_shot_and_labels_from_files(tmp_path):
    pd.DataFrame({"text": ["lovely", "awful"], "label": ["positive", "negative"]}).to_csv(
        tmp_path / "ex.csv", index=False
    )
    source = write(tmp_path / "in.parquet", texts(5))
    where = ["--input", source, "--model", "gguf::demo"]
    done = call("run", "few-shot", *where, "--output", tmp_path / "few", "--examples", tmp_path / "ex.csv")
    assert done.exit_code == 0, done.output
    near = call(
        "run", "few-shot", *where, "--output", tmp_path / "n", "--examples", tmp_path / "ex.csv", "--n-examples", 1
    )
    assert near.exit_code == 0, near.output
    fair = [*where, "--label-prior", "uniform"]
    done = call("run", "few-shot", *fair, "--output", tmp_path / "fair", "--examples", tmp_path / "ex.csv")
    assert done.exit_code == 0, done.output
    done = call("run", "cot", *fair, "--output", tmp_path / "cot", "--labels", "a,b")
    assert "label_prior is given beside cot" in done.output
    (tmp_path / "labels.txt").write_text("positive\n\nnegative\n")
    done = call("run", "classify", *where, "--output", tmp_path / "c", "--labels-file", tmp_path / "labels.txt")
    assert set(read(tmp_path / "c")["prediction"]) <= {"positive", "negative"}
    assert done.exit_code == 0


def test_an_estimate_asks_nothing_and_a_sample_asks_what_it_says(tmp_path):
    source = write(tmp_path / "in.parquet", [*texts(400), *texts(400), None])
    with ChatServer() as server:
        flags = ["--input", source, "--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad"]
        flags += ["--input-price", 2, "--output-price", 8, "--requests-per-minute", 6000]
        free = call("estimate", "classify", *flags)
        assert free.exit_code == 0, free.output
        assert server.n_requests == 0
        assert "6,000 requests/min" in free.output
        assert "4 bytes a token" in free.output
        sampled = call("estimate", "classify", *flags, "--sample", 50)
        assert "50 rows asked" in sampled.output
        assert server.n_requests == 50
        found = list(tmp_path.iterdir())
    assert found == [tmp_path / "in.parquet"]


@pytest.mark.filterwarnings("ignore:gguf..demo would answer with one of the labels")  # it knows other labels
@pytest.mark.parametrize("kind", ["short", "long", "mixed", "doubled", "gguf"])
def test_a_sampled_estimate_is_within_a_tenth_of_what_the_job_uses(tmp_path, kind):
    rows = {
        "short": texts(300),
        "long": [f"{i} " + "a good thing and more of it " * 40 for i in range(150)],
        "mixed": [f"{i} " + "so good " * (1 + i * i % 90) for i in range(300)],
        "doubled": [f"good {i % 50}" for i in range(300)],
        "gguf": texts(80),
    }[kind]
    source = write(tmp_path / "in.parquet", rows)
    with ChatServer() as server:
        local = ZeroShotGPTClassifier(model="gguf::demo")
        clf = local.fit(None, LABELS) if kind == "gguf" else api_classifier(server)
        options = {"input_price": 1.0, "output_price": 4.0}
        told = estimate_job(batch.job_for(clf, source, "/nowhere", **options), 50 if kind == "gguf" else 100)
        used = batch.run(clf, source, str(tmp_path / "out"), **options).this_run
    assert told.prompt_tokens[0] <= used.prompt_tokens * 1.1
    assert told.prompt_tokens[1] >= used.prompt_tokens * 0.9
    middle = sum(told.prompt_tokens) / 2
    assert abs(middle - used.prompt_tokens) <= 0.1 * used.prompt_tokens
    assert abs(sum(told.completion_tokens) / 2 - used.completion_tokens) <= 0.1 * max(1, used.completion_tokens)


def test_models_are_compared_on_the_same_labelled_rows(tmp_path):
    rows = [f"good {i}" if i % 2 else f"bad {i}" for i in range(300)]
    source = write(tmp_path / "in.parquet", rows, truth=["good" if i % 2 else "bad" for i in range(300)])

    def answer(body: dict) -> str:
        right = "good" if "good" in str(body["messages"][-1]).rpartition("Text")[2] else "bad"
        return json.dumps({"label": right if body["model"] == "right" else "good"})

    with ChatServer(answer) as server:
        flags = [
            "--input",
            source,
            "--gpt-url",
            server.url,
            "--labels",
            "good,bad",
            "--label-column",
            "truth",
            "--json",
        ]
        models = "custom_url::right,custom_url::always-good"
        done = call("evaluate", "classify", *flags, "--models", models, "--sample", 100)
    assert done.exit_code == 0, done.output
    right, always = json.loads(done.stdout.splitlines()[-1])
    assert (right["accuracy"], right["rows"], right["high"]) == (1.0, 100, 1.0)
    assert 0.3 < always["accuracy"] < 0.7
    assert always["low"] < always["accuracy"] < always["high"]
    assert sum(map(sum, always["confusion"])) == 100
    table = call("evaluate", "classify", *flags[:-1], "--models", "gguf::demo", "--sample", 20)
    assert "accuracy (95%)" in table.output


def said(body: dict) -> str:
    """Answer with the label in the text that the prompt lists, else with the first one that it lists."""
    told = str(body["messages"][-1]["content"])
    listed = re.search(r"\[[^\]]*\]", told).group()
    text = told.rpartition("Text")[2]
    return json.dumps({"label": next((one for one in ("refund", "parcel") if one in text and one in listed), "other")})


def yaml_file(path: Path, **settings: Any) -> str:
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return str(path)


def test_labels_are_compared_with_others_in_their_place(tmp_path):
    rows = [f"where is my {'parcel' if i % 2 else 'refund'} {i}" for i in range(60)]
    truth = ["parcel" if i % 2 else "code b2" for i in range(60)]
    source = write(tmp_path / "in.parquet", rows, truth=truth)
    renamed = yaml_file(
        tmp_path / "renamed.yaml", labels=["refund", "parcel", "other"], renamed_labels={"code b2": "refund"}
    )
    lost = yaml_file(tmp_path / "lost.yaml", labels=["parcel", "other"])
    with ChatServer(said) as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        flags += ["--labels", "code b2,parcel,other", "--variants", f"{renamed},{lost}", "--rows", tmp_path / "r.csv"]
        done = call("evaluate", "classify", *flags, "--json")
        assert done.exit_code == 0, done.output
        shown = call("evaluate", "classify", *flags)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["model"] for one in found] == ["as given", "renamed.yaml", "lost.yaml"]
    assert [(one["accuracy"], one["foreign"]) for one in found] == [(0.5, 0), (1.0, 0), (0.5, 30)]
    better = found[1]["against_first"]
    assert (better["difference"], better["low"] > 0) == (0.5, True)
    assert "lost.yaml: 30 rows have a true label that is no candidate" in shown.output
    with (tmp_path / "r.csv").open() as file:
        head, first, *_ = csv.reader(file)
    assert head == [
        "text",
        "truth",
        *(f"{name}{of}" for name in ("as given", "renamed.yaml", "lost.yaml") for of in ("", " probability")),
    ]
    assert first[1] in {"code b2", "parcel"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("input: elsewhere", "'input', which cannot vary.*labels"),
        ("labels: [a, b]\ncolour: red", "'colour', which cannot vary"),
        ("- a", "must hold settings by name; it holds a list"),
        ("labels: 5", "labels: .*got '5'"),
        ("label_prior: [", "cannot be read"),
        ("labels: [x, y]", "holds none of the candidate labels.*renamed_labels"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_before_it_costs(tmp_path, content, message):
    source = write(tmp_path / "in.parquet", texts(4), truth=["a", "b", "a", "b"])
    (tmp_path / "v.yaml").write_text(content)
    with ChatServer() as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        done = call("evaluate", "classify", *flags, "--labels", "a,b", "--variants", tmp_path / "v.yaml")
    assert (done.exit_code, server.n_requests) == (1, 0)
    assert re.search(message, " ".join(done.output.split()))


def test_variants_of_several_models_and_prompts(tmp_path):
    source = write(tmp_path / "in.parquet", texts(4), truth=["good"] * 4)
    (tmp_path / "p.txt").write_text("Choose one of {labels}: {x}")
    descriptions = yaml_file(tmp_path / "described.yaml", label_descriptions={"good": "what is liked"})
    with ChatServer() as server:
        flags = [
            "--input",
            source,
            "--gpt-url",
            server.url,
            "--label-column",
            "truth",
            "--labels",
            "good,bad",
            "--json",
        ]
        flags += [
            "--models",
            "custom_url::a,custom_url::b",
            "--prompts",
            tmp_path / "p.txt",
            "--variants",
            descriptions,
        ]
        done = call("evaluate", "classify", *flags)
    assert done.exit_code == 0, done.output
    names = [one["model"] for one in json.loads(done.stdout.splitlines()[-1])]
    assert names == [f"custom_url::{m}, {v}, p.txt" for m in "ab" for v in ("as given", "described.yaml")]


def test_one_label_for_nearly_all_is_told(tmp_path):
    truth = ["good", "bad", "odd"] * 20
    source = write(tmp_path / "in.parquet", texts(60), truth=truth)
    nearly = itertools.count()
    with ChatServer(lambda _: json.dumps({"label": "good" if next(nearly) % 10 else "bad"})) as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,bad,odd"]
        done = call("evaluate", "classify", *flags, "--label-column", "truth", "--html", tmp_path / "e.html")
        told = "54 of 60 texts were given the label 'good', one of 3. label_descriptions"
        assert told in " ".join(done.output.split())
        assert "54 of 60 texts were given the label" in (tmp_path / "e.html").read_text()
        run = [*flags, "--output", tmp_path / "out", "--unit-rows", 7]
        with warnings.catch_warnings():
            warnings.simplefilter("always", SkllmRayWarning)
            done = call("run", "classify", *run)
    assert f"Warning: {told}" in done.stderr
    assert "core.py" not in done.output


@pytest.mark.parametrize("budget", [[], ["--budget-usd", 1, "--input-price", 1, "--output-price", 1]])
def test_one_row_tells_no_speed(tmp_path, budget):
    source = write(tmp_path / "in.parquet", texts(1), truth=["good"])
    with ChatServer() as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,bad"]
        done = call("evaluate", "classify", *flags, *budget, "--label-column", "truth", "--json")
        assert done.exit_code == 0, done.output
        shown = call("estimate", "classify", *flags, *budget, "--sample", 1)
    (found,) = json.loads(done.stdout.splitlines()[-1])
    assert (found["rows"], found["rows_per_s"]) == (1, None)
    assert "not known before" in shown.output


def test_nothing_is_said_where_the_truth_is_one_label(tmp_path):
    source = write(tmp_path / "in.parquet", texts(60), truth=["good"] * 59 + ["bad"])
    with ChatServer(lambda _: '{"label": "good"}') as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,bad,odd"]
        done = call("evaluate", "classify", *flags, "--label-column", "truth")
    assert "were given the label" not in done.output


@pytest.mark.filterwarnings("ignore::skllm_ray.errors.SkllmRayWarning")  # the demo model knows no such labels
def test_a_local_model_searches_for_labels_where_no_probabilities_are_wanted(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    labels = ",".join(f"{colour} {n}" for colour in ("red", "green", "blue") for n in range(22))
    flags = ["--input", source, "--model", "gguf::demo", "--labels", labels]
    for name, more in {"all": [], "best": ["--without-probabilities"]}.items():
        done = call("run", "classify", *flags, *more, "--output", tmp_path / name)
        assert done.exit_code == 0, done.output
        SKLLMConfig.reset()
    whole, best = (pd.read_parquet(tmp_path / name) for name in ("all", "best"))
    assert (best.prediction == whole.prediction).all()
    assert whole.probability.notna().all() and whole.label_mass.notna().all()
    assert best.probability.isna().all() and best.label_mass.isna().all()


def test_the_help_of_evaluate_leaves_out_what_a_run_alone_uses():
    told = call("evaluate", "--help").output
    assert "--variants" in told and "--renamed-labels" in told
    for name in ("--unit-rows", "--fast-model", "--output ", "--max-words", "--delivery"):
        assert name not in told
    assert "--unit-rows" in call("run", "--help").output


def test_what_an_estimate_counts_is_what_a_run_would_do(tmp_path):
    source = write(tmp_path / "in.parquet", [*texts(290), *(f"POISON {i}" for i in range(10))])
    with ChatServer(lambda body: StatusFault(400) if "POISON" in str(body) else '{"label": "good"}') as server:
        clf = api_classifier(server)

        def left(**options: Any) -> int:
            return estimate_job(batch.job_for(clf, source, str(tmp_path / "out"), unit_rows=60, **options)).rows_left

        assert (left(), left(limit=100), left(limit=1000), left(retry_errors=True)) == (300, 100, 300, 300)
        batch.run(clf, source, str(tmp_path / "out"), unit_rows=60, limit=100)
        assert (left(), left(limit=100), left(limit=150), left(limit=30)) == (200, 0, 50, 0)
        batch.run(clf, source, str(tmp_path / "out"), unit_rows=60)
        n_asked = server.n_requests
        assert (left(), left(retry_errors=True)) == (0, 10)
        done = estimate_job(batch.job_for(clf, source, str(tmp_path / "out"), unit_rows=60), 20)
        assert (done.requests, done.seconds, server.n_requests) == (0, (0.0, 0.0), n_asked)
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad", "--unit-rows", 60]
        shown = call("estimate", "classify", "--input", source, "--output", tmp_path / "out", *flags)
        assert "0 left of 300" in shown.output


def test_each_row_of_an_evaluation_is_asked_once(tmp_path):
    source = write(tmp_path / "in.parquet", texts(50), truth=["good"] * 50)
    with ChatServer() as server:
        flags = ["--input", source, "--gpt-url", server.url, "--labels", "good,bad", "--label-column", "truth"]
        done = call("evaluate", "classify", *flags, "--models", "custom_url::a,custom_url::b", "--sample", 20)
        assert done.exit_code == 0, done.output
        assert server.n_requests == 40
        alone = call("evaluate", "classify", *flags, "--models", "custom_url::a", "--sample", 2)
        assert (alone.exit_code, server.n_requests) == (0, 42)
        assert "strong model alone" not in alone.output
        strong = call(
            "evaluate", "classify", *flags, "--model", "custom_url::a", "--fast-model", "gguf::demo", "--sample", 2
        )
        assert "evaluate asks the strong model alone" in strong.output


def test_an_evaluation_compares_sets_of_labels(tmp_path):
    truth = [["good", "nice"], ["nice"], [], ["odd"]]
    plain = {"list": truth, "words": ["good, nice", "nice", "", "odd"], "json": [json.dumps(one) for one in truth]}
    source = write(tmp_path / "in.parquet", texts(4), **plain)
    with ChatServer(lambda _: '{"label": ["nice", "good"]}') as server:
        where = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,nice,bad"]
        for column in plain:
            done = call("evaluate", "multilabel", *where, "--label-column", column, "--json")
            assert done.exit_code == 0, done.output
            (found,) = json.loads(done.stdout.splitlines()[-1])
            assert (found["accuracy"], found["confusion"], found["rows"]) == (0.25, [], 4)
            assert found["f1"] == pytest.approx(2 * 3 / (8 + len(truth)))
        shown = call("evaluate", "multilabel", *where, "--label-column", "list")
        assert "F1" in shown.output
        assert "1 rows have a true label that is no candidate" in shown.output


def test_an_evaluation_of_explained_labels(tmp_path):
    source = write(tmp_path / "in.parquet", texts(4), truth=["good", "good", "bad", "good"])
    with ChatServer(lambda _: '{"explanation": "because", "label": "good"}') as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,bad"]
        done = call("evaluate", "cot", *flags, "--label-column", "truth", "--json")
    assert json.loads(done.stdout.splitlines()[-1])[0]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["summarize"], "gives no labels to compare"),
        (["embed"], "gives no labels to compare"),
        (["classify", "--labels", "a,b"], "none of the candidate labels"),
        (["multilabel", "--labels", "a,b"], "none of the candidate labels"),
        (["classify", "--labels", "good,bad", "--label-column", "none"], "no column 'none'"),
        (["classify", "--labels", "good,bad", "--label-column", "null"], "holds no labels"),
    ],
)
def test_an_evaluation_that_can_tell_nothing_is_refused_before_it_costs(tmp_path, task, message):
    source = write(tmp_path / "in.parquet", texts(4), truth=["good"] * 4, null=pa.nulls(4))
    with ChatServer() as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        done = call("evaluate", *task[:1], *flags, *task[1:])
        assert (done.exit_code, server.n_requests) == (1, 0)
    assert message in done.output


def test_an_estimator_and_what_is_said_beside_it(tmp_path):
    source = write(tmp_path / "in.parquet", texts(30), truth=["good"] * 30)
    with ChatServer(lambda body: json.dumps({"label": "good" if body["model"] == "right" else "bad"})) as server:
        joblib.dump(api_classifier(server), tmp_path / "clf.joblib")
        where = ["--estimator", tmp_path / "clf.joblib", "--input", source]
        SKLLMConfig.reset()  # what the estimator knew, such as the server, holds here too, under what is said besides
        told = call("estimate", *where, "--requests-per-minute", 5, "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout.splitlines()[-1])["limited_by"] == "5 requests/min"
        SKLLMConfig.reset()
        models = ["--models", "custom_url::right,custom_url::wrong", "--label-column", "truth", "--json"]
        found = json.loads(call("evaluate", *where, *models).stdout.splitlines()[-1])
        assert [(one["model"], one["accuracy"]) for one in found] == [
            ("custom_url::right", 1.0),
            ("custom_url::wrong", 0.0),
        ]
        done = call("run", *where, "--output", tmp_path / "out", "--model", "custom_url::right")
        assert done.exit_code == 0, done.output
        assert set(read(tmp_path / "out")["prediction"]) == {"good"}
    for flags in (["classify"], ["--labels", "a,b"], ["--on-error", "default"], ["--examples", "x.csv"]):
        refused = call("run", *where, "--output", tmp_path / "no", *flags)
        assert refused.exit_code == 1
        assert "is given beside an estimator" in refused.output


def test_limits_hold_for_the_model_that_is_taken_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    source = write(tmp_path / "in.parquet", texts(30))
    flags = ["--input", source, "--labels", "a,b", "--requests-per-minute", 5, "--json"]
    told = call("estimate", "classify", *flags)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout.splitlines()[-1])["limited_by"] == "5 requests/min"


def test_a_result_with_failed_rows_is_json(tmp_path):
    source = write(tmp_path / "in.parquet", ["I love it", None])
    flags = ["--model", "gguf::demo", "--labels", "positive,negative", "--json"]
    done = call("run", "classify", "--input", source, "--output", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["errors"] == told["total"]["errors"] == {"missing_text": 1}
    assert told["complete"] is True


def test_a_templates_line_breaks_in_a_flag(tmp_path):
    source = write(tmp_path / "in.parquet", ["below"], title=["above"])
    with ChatServer() as server:
        flags = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "a,b"]
        for number, template in enumerate([r"{title}\n{text}", r"{title}\\n\t{text}\x"]):
            call("run", "classify", *flags, "--output", tmp_path / str(number), "--text-template", template)
        prompts = [prompt_of(one.body) for one in server.received]
    assert "above\nbelow" in prompts[0]
    assert "above\\n\tbelow\\x" in prompts[1]


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        ({"e": b"no pickle"}, ["--estimator", "e"], "cannot be loaded"),
        ({"e": b""}, ["--estimator", "e"], "cannot be loaded"),
        ({}, ["--estimator", "nowhere"], "cannot be loaded"),
        ({"c": b"task: \xff\xfe"}, ["--config", "c"], "it is not UTF-8"),
        ({"c": b"storage_options: [AKIA, secret-xyz\nb: ]"}, ["--config", "c"], "in line 2"),
        ({"c": b"storage_options: AKIA-secret-xyz"}, ["--config", "c"], "storage_options: Input should be"),
        ({"c": b"request_options: secret-xyz"}, ["--config", "c"], "request_options: Input should be"),
        ({"c": b"labels: [yes, no]"}, ["--config", "c"], "got 'True'; write it in quotes"),
        ({"l": b"pos\xffitive\nnegative"}, ["classify", "--labels-file", "l"], "it is not UTF-8"),
        (
            {"x.jsonl": b'{"text": "a", "label": "b"}\nsecret-xyz'},
            ["few-shot", "--examples", "x.jsonl"],
            "cannot be read",
        ),
        ({"x.parquet": b"no"}, ["few-shot", "--examples", "x.parquet"], "cannot be read"),
        ({"x.csv": b"text,label\na,b\n,c"}, ["few-shot", "--examples", "x.csv"], "'text' is empty in row 2"),
        ({"x.csv": b"text,label\na,b\nc"}, ["few-shot", "--examples", "x.csv"], "'label' is empty in row 2"),
        ({"x.jsonl": b'{"text": "a", "label": null}'}, ["few-shot", "--examples", "x.jsonl"], "is empty in row 1"),
        ({"x.csv": b"txt,label\na,b"}, ["few-shot", "--examples", "x.csv"], "has no column 'text'"),
        ({"x.csv": b""}, ["few-shot", "--examples", "x.csv"], "cannot be read"),
        ({"x.xls": b""}, ["few-shot", "--examples", "x.xls"], "of no known kind"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_line(tmp_path, monkeypatch, files, flags, message):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "in.parquet", texts(5))
    where = ["--input", "in.parquet", "--output", "out"]
    done = call("run", *flags, *where, *([] if flags[0] in {"--config", "--estimator"} else ["--model", "gguf::demo"]))
    assert done.exit_code == 1, done.output
    assert message in done.output
    assert "secret" not in done.output
    assert "unforeseen" not in done.output
    assert not (tmp_path / "out").exists()


def test_an_estimator_that_is_not_fitted_or_none(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5))
    joblib.dump(ZeroShotGPTClassifier(model="gguf::demo"), tmp_path / "raw.joblib")
    joblib.dump({"a": 1}, tmp_path / "dict.joblib")
    for name, message in (("raw", "is not fitted"), ("dict", "holds a dict")):
        done = call("run", "--estimator", tmp_path / f"{name}.joblib", "--input", source, "--output", tmp_path / "out")
        assert (done.exit_code, message in done.output) == (1, True), done.output


def test_what_nobody_foresaw_is_one_line_without_any_row(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a row's secret text")

    monkeypatch.setattr("skllm_ray.batch.job_for", fail)
    source = write(tmp_path / "in.parquet", texts(5))
    flags = ["--model", "gguf::demo", "--labels", "a,b"]
    done = call("run", "classify", "--input", source, "--output", tmp_path / "out", *flags)
    assert done.exit_code == 1
    assert "ZeroDivisionError in fail (test_cli.py, line" in done.output
    assert "secret" not in done.output


def test_files_with_marks_and_rare_line_breaks(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffpositive\r\nnegative\r\n".encode())
    (tmp_path / "job.yaml").write_bytes("\ufefftask: classify\ninput: in.parquet\nkeep_columns: id".encode())
    job = read_job(str(tmp_path / "job.yaml"), {"labels_file": str(tmp_path / "labels.txt"), "model": "gguf::demo"})
    assert (job.input, job.keep_columns) == (["in.parquet"], ["id"])
    jsonschema.validate({"input": "in.parquet", "keep_columns": "id"}, job_schema())
    jsonschema.validate({"input": ["in.parquet"], "keep_columns": None}, job_schema())
    assert prepare(job).classes_.tolist() == ["negative", "positive"]
    lines = ['{"text": "good\u2028 x", "label": "a"}', '{"text": "2020-01-01", "label": "b"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines), "utf-8")
    few = JobFile(task="few-shot", model="gguf::demo", examples=str(tmp_path / "x.jsonl"))
    made = prepare(few)
    assert made.classes_.tolist() == ["a", "b"]
    assert "2020-01-01" in made.render_prompt(["t"])[0]


def test_the_help_tells_defaults_and_exit_codes():
    shown = re.sub(r"\s+", " ", call("run", "--help").output)
    assert "--input PATH" in shown
    assert "[default: 600.0]" in shown
    assert "130 or 143: interrupted" in shown


def test_every_flag_of_the_docs_is_there():
    text = (Path(__file__).parents[2] / "docs" / "batch.md").read_text("utf-8")
    helps = "".join(call(name, "--help").output for name in ("run", "estimate", "evaluate", "report", "review"))
    missing = {flag for flag in re.findall(r"`(--[a-z-]+)", text) if flag not in helps}
    assert missing == set()


# --- what a person is told ----------------------------------------------------------------------------------------


def test_a_job_whose_rows_mostly_fail_is_not_done_and_tells_the_first_reason(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(lambda body: StatusFault(400, "no [/inst] \x1b[35m \x00 \ud800 here")) as server:
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "a,b", "--input", source]
        done = call("run", "classify", *flags, "--output", tmp_path / "out")
        assert done.exit_code == 4, done.output
        assert "Most rows failed" in done.output
        assert "no [/inst]" in done.output
        assert "--retry-errors" in done.output
        assert not set("\x1b\x00") & set(done.output)
        again = call("run", "classify", *flags, "--output", tmp_path / "out", "--json")
        assert again.exit_code == 4
        assert json.loads(again.stdout.splitlines()[-1])["reasons"]["bad_request"]


def test_markup_in_labels_and_folders_is_shown(tmp_path):
    folder = tmp_path / "x[/red]"
    source = write(folder / "in.parquet", texts(5), label=["[/inst]", "b"] * 2 + ["b"])
    flags = ["--model", "gguf::demo", "--labels", "[/inst],b", "--input", source]
    done = call("run", "classify", *flags, "--output", folder / "out")
    assert done.exit_code == 0, done.output
    assert "x[/red]" in re.sub(r"[\s│]", "", done.output)
    compared = call("evaluate", "classify", *flags, "--sample", 5)
    assert compared.exit_code == 0, compared.output
    assert "[/inst]" in compared.output


def test_a_message_with_control_characters_reaches_no_terminal(tmp_path):
    done = call(
        "run",
        "classify",
        "--input",
        f"{tmp_path}/a\x1b[35m\x07",
        "--output",
        tmp_path / "out",
        "--labels",
        "a,b",
        "--model",
        "gguf::demo",
    )
    assert done.exit_code == 1
    assert "\\x1b[35m\\x07" in done.output
    assert not set("\x1b\x07") & set(done.output)


def test_a_csv_file_is_read_by_tune_as_by_run(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,label\nNA,null\n1.0,007\n"nan, true",1\n', "utf-8-sig")
    texts, labels = read_columns(str(path), {"text_column": "text", "answer_column": "label"}, "data")
    assert (texts, labels) == (["NA", "1.0", "nan, true"], ["null", "007", "1"])
    (tmp_path / "data.jsonl").write_text('{"text": "2020-01-01", "label": "a"}\n')
    assert read_columns(str(tmp_path / "data.jsonl"), {"t": "text"}, "data") == [["2020-01-01"]]
    refused = call("tune", "submit", "GPTClassifier", "--data", path, "--answer-column", "nope")
    assert refused.exit_code == 1
    assert "no column 'nope' (answer_column). Columns: text, label." in refused.output


@pytest.mark.parametrize(
    ("fault", "cost"),
    [("", "price not known"), ("cut", "price not known"), ("refused", "0.0000 USD")],
)
def test_no_cost_is_shown_that_is_not_known(tmp_path, fault, cost):
    """Of answers that failed, those that were paid for have a cost that nobody knows; refusals cost nothing."""
    source = write(tmp_path / "in.parquet", texts(30))
    whole = {"choices": [{"message": {"content": '{"lab'}, "finish_reason": "length"}]}
    cut = RawAnswer({**whole, "usage": {"prompt_tokens": 9, "completion_tokens": 9}})
    answers = {"": '{"label": "good"}', "cut": cut, "refused": StatusFault(400, "no such")}
    with ChatServer(lambda body: answers[fault]) as server:
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad", "--input", source]
        done = call("run", "classify", *flags, "--output", tmp_path / "out", "--limit", 30)
    told = re.sub(r"[\s│]+", " ", done.output)
    assert f" cost {cost} " in told, told


def test_answers_of_unknown_price_that_are_in_no_part_yet_have_no_price():
    from skllm_ray.batch import JobResult
    from skllm_ray.batch.output.progress import Progress
    from skllm_ray.cli.batch import _show

    paid = Progress(rows=0, asked=7, unpriced=7)
    result = JobResult("out", 100, 0, {}, {}, "interrupted", paid, paid, 0.0, 1.0, 100, pending=paid)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        _show(result)
    assert "7 answers that are kept, price not known" in re.sub(r"[\s│]+", " ", shown.getvalue())


def test_what_others_print_during_a_job_does_not_stand_among_its_results(capsys):
    """Ray prints to standard output what became of processes that died."""
    from skllm_ray.cli.batch import job_of, ray_of

    with ray_of(job_of(None, {"task": "classify"}, needs_output=False, needs_input=False)):
        sys.stdout.write("(raylet) A worker died.\n")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "(raylet) A worker died.\n")


def test_a_sample_whose_answers_are_of_no_use_says_so(tmp_path):
    source = write(tmp_path / "in.parquet", texts(30))
    with ChatServer(lambda body: "it depends") as server:
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad", "--input", source]
        done = call("estimate", "classify", *flags, "--sample", 20)
        told = re.sub(r"[\s│]+", " ", done.output)
        assert done.exit_code == 4
        assert "20 rows asked, 20 of them failed" in told
        assert "invalid_answer: " in told
        assert "rows/s, as the sample" in told  # how fast it answers is known
        ran = call("run", "classify", *flags, "--output", tmp_path / "out")
        assert ran.exit_code == 4  # the run that it foretells


# --- samples, within a budget and with failures -------------------------------------------------------------------


@pytest.mark.parametrize("command", [["estimate"], ["evaluate", "--label-column", "y"]])
def test_a_sample_keeps_to_the_budget_and_says_so(tmp_path, command):
    rows = texts(300)
    source = write(tmp_path / "in.parquet", rows, y=["good" if "good" in text else "bad" for text in rows])
    with ChatServer() as server:
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad", "--input", source]
        prices = ["--input-price", 1000, "--output-price", 1000, "--max-output-tokens", 10]
        refused = call(*command, "classify", *flags, *prices, "--sample", 200, "--budget-usd", 0.001)
        assert refused.exit_code == 1
        assert "does not cover one row" in refused.output
        assert server.n_requests == 0
        done = call(*command, "classify", *flags, *prices, "--sample", 200, "--budget-usd", 5)
        assert done.exit_code == 0, done.output
        n = server.n_requests
        tokens = sum(len(prompt_of(one.body)) // 4 for one in server.received)
        assert 5 < n < 200
        assert tokens / 1000 <= 5
        told = re.sub(r"[\s│]+", " ", done.output)
        assert f"the budget of 5 USD covers {n} of 200 rows" in told
        assert call(*command, "classify", *flags, "--sample", 200).exit_code == 0
        assert server.n_requests == n + 200


def test_models_that_share_a_budget_are_asked_the_same_rows(tmp_path):
    rows = texts(300)
    source = write(tmp_path / "in.parquet", rows, y=["good" if "good" in text else "bad" for text in rows])
    with ChatServer() as server:
        flags = ["--models", "custom_url::m,custom_url::n", "--gpt-url", server.url, "--labels", "good,bad"]
        prices = ["--input-price", 1000, "--output-price", 1000, "--max-output-tokens", 10, "--budget-usd", 9]
        done = call("evaluate", "classify", *flags, *prices, "--input", source, "--label-column", "y", "--json")
        found = json.loads(done.stdout.splitlines()[-1])
    assert [one["rows"] for one in found] == [server.n_requests // 2] * 2
    assert all("budget" in one["stopped"] for one in found)
    assert all(one["usd_per_1000"] > 0 for one in found)


@pytest.mark.parametrize("command", [["estimate"], ["evaluate", "--label-column", "y"]])
def test_a_sample_in_which_all_rows_fail_shows_no_speed_and_tells_why(tmp_path, command):
    source = write(tmp_path / "in.parquet", texts(30), y=["good"] * 30)
    with ChatServer(lambda body: StatusFault(400, "nobody home")) as server:
        flags = ["--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad", "--input", source]
        done = call(*command, "classify", *flags, "--sample", 20)
        told = re.sub(r"[\s│]+", " ", done.output)
        assert done.exit_code == 4
        assert "bad_request" in told
        assert "nobody home" in told
        assert "rows/s," not in told
        assert "0.0% to" not in told
        budget = ["--budget-usd", 100, "--input-price", 1, "--output-price", 1]
        again = call(*command, "classify", *flags, "--sample", 20, *budget)
        assert again.exit_code == 4
        assert "nobody home" in re.sub(r"[\s│]+", " ", again.output)


def test_an_estimate_needs_no_key_and_shows_the_other_ways_to_pay(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "SKLLM_CONFIG_OPENAI_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    source = write(tmp_path / "in.parquet", texts(300))
    told = json.loads(
        call(
            "estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "gpt-5.4-mini", "--json"
        ).output
    )
    low, high = told["cost_usd"]
    assert told["other_ways_usd"] == {"flex": [low / 2, high / 2], "batch": [low / 2, high / 2]}
    assert SKLLMConfig.get_openai_key() is None
    shown = call("estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "gpt-5.4-mini").output
    assert "at the flex tier" in shown
    assert "cached" not in shown  # the prompts begin with too few tokens
    refused = call(
        "estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "gpt-5.4-mini", "--sample", 5
    )
    assert "No openai_key was found" in refused.output


def test_what_the_provider_s_cache_saves_is_shown_where_all_prompts_begin_alike(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    source = write(tmp_path / "in.parquet", ["good " * 40, "bad " * 60, "so so " * 20] * 50)
    labels = ",".join(f"a label with many words, number {i}".replace(",", "") for i in range(200))
    job = ("estimate", "classify", "--input", source, "--labels", labels, "--model", "gpt-5.4-mini")
    told = json.loads(call(*job, "--json").output)
    (low, high), cached = told["cost_usd"], told["other_ways_usd"]["cached input"]
    alike = [
        told["beginning_tokens"] * share // 128 * 128 for share in (0.75, 1.25)
    ]  # four bytes are not quite a token
    saved = [n * (0.75 - 0.075) / 1e6 * told["requests"] for n in alike]
    assert told["beginning_tokens"] > 1024
    assert [low - cached[0], high - cached[1]] == pytest.approx(saved)
    assert 0 < cached[0] < cached[1]
    assert "with cached input" in call(*job).output


def test_a_server_of_one_s_own_has_no_tiers(tmp_path):
    source = write(tmp_path / "in.parquet", texts(30))
    told = json.loads(call(
        "estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "custom_url::m", "--gpt-url", "http://127.0.0.1:9/v1",
        "--input-price", "1", "--output-price", "1", "--json",
    ).output)  # fmt: skip
    assert told["other_ways_usd"] == {}


def test_a_sample_of_a_local_model_tells_its_hours(tmp_path):
    source = write(tmp_path / "in.parquet", texts(60))
    job = ("estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "gguf::demo")
    assert json.loads(call(*job, "--json").output)["model_hours"] is None
    told = json.loads(call(*job, "--sample", "20", "--json").output)
    assert told["model_hours"] == pytest.approx([value / 3600 for value in told["seconds"]])


def test_an_estimate_for_many_more_rows_like_these(tmp_path):
    source = write(tmp_path / "in.parquet", texts(300))
    job = ("estimate", "classify", "--input", source, "--labels", "good,bad", "--model", "gpt-5.4-mini")
    few, many = (json.loads(call(*job, *more, "--json").output) for more in ((), ("--as-if-rows", 3_000_000)))
    assert many["requests"] == 10_000 * few["requests"] == 3_000_000
    assert many["cost_usd"] == pytest.approx([10_000 * cost for cost in few["cost_usd"]], rel=1e-3)
    shown = " ".join(call(*job, "--as-if-rows", 3_000_000).output.split())
    assert "3,000,000, as if they were like the 300 of the input" in shown


def test_hours_are_gpu_hours_where_actors_have_gpus(tmp_path):
    source = write(tmp_path / "in.parquet", texts(30))
    SKLLMConfig.set_gpt_url("http://127.0.0.1:9/v1")
    clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
    told = replace(estimate_job(batch.job_for(clf, source, "/nowhere")), model_hours=(10.0, 14.0), gpus=2.0)
    assert told.facts()["model time"] == "20 to 28 GPU-hours, its actors added up"
    assert replace(told, gpus=0.0).facts()["model time"] == "10 to 14 hours of a model on CPUs, its actors added up"


def test_labels_that_stand_twice_and_files_without_rows_are_told_in_the_words_of_the_command_line(tmp_path):
    (tmp_path / "head.csv").write_text("id,text\n")
    (tmp_path / "none.csv").write_text("")
    common = ["classify", "--model", "gguf::demo", "--labels"]

    def told(command, file, labels="good,bad", *more):
        done = CliRunner().invoke(main, [*command, *common, labels, "--input", str(tmp_path / file), *more])
        return " ".join(done.output.replace("│", " ").split())

    assert "labels: 'good' stands twice. Leave one out: --labels" in told(["estimate"], "head.csv", "good,bad,good")
    assert "none: the input has no rows" in told(["estimate"], "head.csv")
    assert "the input has no rows" in told(["labels", "check"], "head.csv")
    assert "no column 'text': it is empty" in told(["estimate"], "none.csv")
    assert "no column 'txt'. Did you mean 'text'?" in told(["estimate"], "head.csv", "good,bad", "--text-column", "txt")
