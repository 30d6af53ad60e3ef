"""What travels between a task and a backend."""

import pickle
from typing import get_args

import pytest

from skllm_ray.tasks.base import ErrorKind, RowError


@pytest.mark.parametrize("kind", get_args(ErrorKind))
def test_every_kind_of_failure_says_what_to_do(kind):
    error = RowError(kind, "message")
    assert error.hint.endswith((".", "?"))
    assert error.hint.encode() not in pickle.dumps(error)  # a million rows carry it nowhere
