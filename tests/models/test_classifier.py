"""Labels and probabilities of classifiers on API models: what one says, the other says too."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError, NotSupportedError, PartialResultError, SkllmRayWarning
from skllm_ray.testing import ChatServer, StatusFault
from skllm_ray.testing.chat_http import Response

pytestmark = pytest.mark.usefixtures("local_mode")


class Spoken(ChatServer):
    """Gives tokens with their alternatives: ``[(token, {alternative: probability}), …]``."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def _answer_to(self, path, body, key):
        text = "".join(token for token, _ in self.tokens)
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [self.told(*token) for token in self.tokens]}
        return Response(200, json.dumps({"model": "m", "choices": [choice], "usage": {}}).encode())

    @staticmethod
    def told(token, others):
        shares = {token: 1 - sum(others.values()), **others}
        top = [{"token": name, "logprob": math.log(share)} for name, share in shares.items()]
        return {**top[0], "top_logprobs": top}


def fitted(server, labels=("even", "odd"), **options):
    SKLLMConfig.set_gpt_url(server.url)
    return ZeroShotGPTClassifier(model="custom_url::m", **options).fit(None, list(labels))


@pytest.mark.parametrize(
    "tokens",
    [
        [('{"label":"', {}), ("odd", {"even": 0.1}), ('"}', {})],
        [('{"label":"', {}), ("Odd", {"Even": 0.1}), ('"}', {})],
        [('{"label": ["', {}), ("odd", {"even": 0.1}), ('"]}', {})],
        [("odd", {"even": 0.1}), (".", {})],
        [("**", {}), ("odd", {"even": 0.1}), ("**", {})],
        [('<think>It is {"label": "even"}? No.</think>', {}), ('{"label":"', {}), ("odd", {"even": 0.1}), ('"}', {})],
        [('```json\n{"label":"', {}), ("odd", {"even": 0.1}), ('"}\n```', {})],
        [("The label is ", {}), ("odd", {"even": 0.1})],
        [('{"label":"', {}), ("neither", {"even": 0.1}), ('"}', {})],
        [('{"label":"', {}), ("odd", {"even": 0.1}), ('"} or {"label":"', {}), ("even", {}), ('"}', {})],
    ],
    ids=lambda tokens: "".join(token for token, _ in tokens),
)
def test_predict_and_predict_proba_agree(tokens):
    with Spoken(tokens) as server:
        clf = fitted(server, default_label="none")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (label,), (row,) = clf.predict(["x"]), clf.predict_proba(["x"])
    if label == "none":
        assert row.tolist() == [0.5, 0.5]
        assert [one.category for one in caught] == [SkllmRayWarning] * 2
    else:
        assert (label, caught) == ("odd", [])
        assert row == pytest.approx([0.1, 0.9], abs=1e-6)


def test_integer_labels_agree_too():
    with Spoken([('{"label": ', {}), ("3", {"4": 0.1}), ("}", {})]) as server:
        clf = fitted(server, [3, 4], label_descriptions={3: "three", 4: "four"})
        assert clf.predict(["x"]).tolist() == [3]
        assert clf.predict_proba(["x"])[0] == pytest.approx([0.9, 0.1], abs=1e-6)


@pytest.mark.parametrize("on_error", ["raise", "default", "coerce"])
def test_without_log_probabilities_there_is_no_predict_proba_however_often_it_is_asked_for(on_error):
    with ChatServer(log_probs=False) as server:
        clf = fitted(server)
        for _ in range(2):
            with pytest.raises(NotSupportedError, match="predict works"):
                clf.predict_proba(["so odd"] * 3, on_error=on_error)
        assert server.n_requests == 2
        assert clf.predict(["so odd"]).tolist() == ["odd"]


@pytest.mark.filterwarnings("ignore:.* rows failed and")
def test_log_probabilities_that_fit_no_answer_are_no_silent_nan():
    class Confused(Spoken):
        @staticmethod
        def told(token, others):
            return Spoken.told(f"not {token}", others)

    with Confused([("odd", {})]) as server:
        clf = fitted(server)
        with pytest.raises(PartialResultError, match="malformed_response"):
            clf.predict_proba(["x"])
        assert np.isnan(clf.predict_proba(["x"], on_error="coerce")).all()


def test_other_refusals_stay_what_they_were():
    with ChatServer(lambda body: StatusFault(401, "no")) as server, pytest.raises(JobFailedError):
        fitted(server).predict_proba(["x"])
