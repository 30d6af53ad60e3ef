"""The command line: job files, estimates, comparisons, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import joblib
import jsonschema
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.estimate import estimate_job
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.jobs import job_schema, read_job
from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache
from skllm_ray.testing import ChatServer
from tests.batch.worlds import LABELS, api_classifier, read, texts, write


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch):
    SKLLMConfig.reset()
    ModelCache.clear()
    monkeypatch.setattr(skllm_ray, "shutdown", lambda: None)  # the command would leave local mode
    from skllm_ray.execution import session

    session.init(local_mode=True)
    yield
    ModelCache.clear()
    session.shutdown()
    SKLLMConfig.reset()


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
    (tmp_path / "labels.txt").write_text("positive\n\nnegative\n")
    done = call("run", "classify", *where, "--output", tmp_path / "c", "--labels-file", tmp_path / "labels.txt")
    assert set(read(tmp_path / "c")["prediction"]) <= {"positive", "negative"}
    assert done.exit_code == 0


def test_an_estimate_asks_nothing_and_a_sample_asks_what_it_says(tmp_path):
    source = write(tmp_path / "in.parquet", [*texts(400), *texts(400), None])
    with ChatServer() as server:
        flags = ["--input", source, "--model", "custom_url::m", "--gpt-url", server.url, "--labels", "good,bad"]
        flags += ["--input-price", 2, "--output-price", 8, "--requests-per-minute", 600]
        free = call("estimate", "classify", *flags)
        assert free.exit_code == 0, free.output
        assert server.n_requests == 0
        assert "600 requests/min" in free.output
        assert "4 bytes a token" in free.output
        sampled = call("estimate", "classify", *flags, "--sample", 50)
        assert "50 rows asked" in sampled.output
        assert server.n_requests == 51  # one more to start with
        found = list(tmp_path.iterdir())
    assert found == [tmp_path / "in.parquet"]


@pytest.mark.parametrize("kind", ["short", "long", "mixed", "doubled", "gguf"])
def test_a_sampled_estimate_is_within_a_tenth_of_what_the_job_uses(tmp_path, kind):
    rows = {
        "short": texts(900),
        "long": [f"{i} " + "a good thing and more of it " * 40 for i in range(300)],
        "mixed": [f"{i} " + "so good " * (1 + i * i % 90) for i in range(900)],
        "doubled": [f"good {i % 150}" for i in range(900)],
        "gguf": texts(300),
    }[kind]
    source = write(tmp_path / "in.parquet", rows)
    with ChatServer() as server:
        local = ZeroShotGPTClassifier(model="gguf::demo")
        clf = local.fit(None, LABELS) if kind == "gguf" else api_classifier(server)
        options = {"input_price": 1.0, "output_price": 4.0}
        told = estimate_job(batch.job_for(clf, source, "/nowhere", **options), 100)
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
    assert "95% interval" in table.output


def test_every_flag_of_the_docs_is_there():
    text = (Path(__file__).parents[2] / "docs" / "batch.md").read_text("utf-8")
    helps = "".join(call(name, "--help").output for name in ("run", "estimate", "evaluate", "report"))
    missing = {flag for flag in re.findall(r"`(--[a-z-]+)", text) if flag not in helps}
    assert missing == set()
