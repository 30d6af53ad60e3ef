"""The options of a job: the same in Python, in a job file and as flags."""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, get_args, get_type_hints

import click
import pytest

from skllm_ray import batch
from skllm_ray.batch.job.options import JobOptions
from skllm_ray.cli import main
from skllm_ray.cli.job_file import JobFile, job_schema
from skllm_ray.errors import ConfigurationError

FIELDS = JobOptions.model_fields
PYTHON = {
    name: parameter
    for name, parameter in inspect.signature(batch.run).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "screen"
}
DOCUMENTED = dict(re.findall(r"^(?: {4})?([a-z_, ]+) : (.+)$", inspect.getdoc(batch.run) or "", re.MULTILINE))


def flags(command: str) -> dict[str, click.Parameter]:
    found = main.commands[command]
    return {str(one.name): one for one in found.get_params(click.Context(found))}


def documented(name: str) -> str:
    return next(text for names, text in DOCUMENTED.items() if name in names.split(", "))


def test_run_has_each_option_and_no_other_with_the_same_default():
    assert {name: one.default for name, one in PYTHON.items()} == {name: one.default for name, one in FIELDS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_an_options_type_and_default_are_those_of_the_signature_and_its_documentation(name):
    hint, annotation = get_type_hints(batch.run)[name], FIELDS[name].annotation
    assert (NoneType in get_args(hint)) == (NoneType in get_args(annotation))
    scalar = {int: "int", float: "float", str: "str", bool: "bool"}
    kinds = {scalar[one] for one in (hint, *get_args(hint)) if one in scalar}
    assert kinds == {scalar[one] for one in (annotation, *get_args(annotation)) if one in scalar}
    told = documented(name)
    default = FIELDS[name].default
    shown = f'"{default}"' if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else default
    assert told.endswith(f"default={shown}"), told
    assert all(kind in told for kind in kinds)


@pytest.mark.parametrize("command", ["run", "estimate", "evaluate"])
def test_each_option_is_a_flag_and_a_key_of_the_job_file(command):
    given, schema = flags(command), job_schema()["properties"]
    for name, field in FIELDS.items():
        assert given[name].opts == [f"--{name.replace('_', '-')}"]
        assert str(given[name].help).startswith(str(field.description))
        assert schema[name]["description"] == field.description
        assert schema[name]["default"] == field.default
    assert set(JobFile.model_fields) <= set(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 0}, "limit must be an int of at least 1; got 0."),
        ({"workers": True}, "workers must be an int of at least 1; got True."),
        ({"unit_rows": 2.0}, "unit_rows must be an int of at least 1; got 2.0."),
        ({"budget_usd": -1}, "budget_usd must be a number of at least 0; got -1."),
        ({"input_price": float("nan")}, "input_price must be a number of at least 0; got nan."),
        ({"wait_for_server_s": "9"}, "wait_for_server_s must be a number of at least 0; got '9'."),
        ({"wait_for_server_s": None}, "wait_for_server_s must be a number of at least 0; got None."),
        ({"keep_going": 1}, "keep_going must be True or False; got 1."),
        ({"output_prefix": 5}, "output_prefix must be a str; got 5."),
        ({"keep_replies": "some"}, "keep_replies must be 'none', 'errors' or 'all'; got 'some'."),
        ({"keep_columns": 5}, "keep_columns must be a list of column names; got 5."),
        ({"keep_columns": ["a", 5]}, "keep_columns must be a list of column names; got 5."),
        ({"storage_options": {1: 2}}, "storage_options must be a mapping; got int."),
        ({"storage_options": "AKIA-secret"}, "storage_options must be a mapping; got str."),
    ],
)
def test_what_python_gives_is_not_converted_and_a_message_shows_no_credential(given: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError) as raised:
        JobOptions.of(given)
    assert str(raised.value) == message


def test_one_column_may_be_kept_by_its_name():
    assert JobOptions.of({"keep_columns": "id"}).keep_columns == ["id"]
    assert JobOptions.of({"budget_usd": 5}).budget_usd == 5.0
