"""The error tree: its shape, its messages, and that it survives the way between processes."""

from __future__ import annotations

import pickle
import re

import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from skllm_ray import errors
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import MissingExtraError, PartialResultError, SkllmRayError, SkllmRayWarning
from skllm_ray.testing import ChatServer
from skllm_ray.text2text import GPTSummarizer

ERRORS = [getattr(errors, name) for name in errors.__all__ if name != "SkllmRayWarning"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_pickles_with_its_message_and_hint(error):
    there = pickle.loads(pickle.dumps(error("It broke.", "Mend it.")))
    assert type(there) is error
    assert (there.message, there.hint, str(there)) == ("It broke.", "Mend it.", "It broke. Mend it.")
    assert str(error("It broke.")) == "It broke."


def test_a_partial_result_pickles_with_its_details():
    details = pd.DataFrame({"prediction": ["a", None], "error_kind": [None, "timeout"]}, index=[7, 9])
    there = pickle.loads(pickle.dumps(PartialResultError("1 of 2 rows failed.", "Look.", details)))
    pd.testing.assert_frame_equal(there.details, details)
    assert (str(there), there.hint) == ("1 of 2 rows failed. Look.", "Look.")
    assert PartialResultError("m").details is None


def drawn_tree():
    """Return (name, parent) pairs, read from the picture in the module's docstring."""
    parents = {0: "SkllmRayError"}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^    ((?:│   |    )*)[├└]── (\w+)(?: \((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            parents[depth + 1] = match[2]
            yield match[2], parents[depth], match[3]


def test_the_drawn_tree_is_the_real_one():
    drawn = list(drawn_tree())
    assert {name for name, _, _ in drawn} == {error.__name__ for error in ERRORS} - {"SkllmRayError"}
    for name, parent, builtin in drawn:
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [parent] + ([builtin] if builtin else [])
    assert issubclass(SkllmRayWarning, UserWarning)
    assert not issubclass(SkllmRayWarning, SkllmRayError)


def test_only_what_may_pass_by_itself_is_retryable():
    assert {error.__name__ for error in ERRORS if error.retryable} == {
        "OutputInUseError",
        "PartialResultError",
        "PlacementError",
    }


def test_a_missing_extra_says_how_to_install_it():
    error = MissingExtraError.for_extra("some-package", "gguf")
    assert str(error) == "some-package is not installed. Install it with: pip install 'skllm-ray[gguf]'"
    assert isinstance(error, ImportError)


def test_a_warning_stands_at_the_users_line():
    with pytest.warns(SkllmRayWarning, match="careful") as caught:
        errors.warn("careful")
    assert [one.filename for one in caught] == [__file__]


def test_a_warning_stands_at_the_users_line_through_scikit_learn(local_mode):
    with ChatServer(lambda body: "") as server:
        SKLLMConfig.set_gpt_url(server.url)
        steps = make_pipeline(GPTSummarizer(model="custom_url::m"))
        with pytest.warns(SkllmRayWarning, match="1 of 1 answers") as caught:
            steps.fit_transform(["x"])
    assert [one.filename for one in caught] == [__file__]
