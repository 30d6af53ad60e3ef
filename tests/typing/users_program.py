"""What a type checker tells the user of this library; ``make check`` reads it, and nothing runs it."""

from typing import Any, assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.classification import MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.text2text import GPTSummarizer
from skllm_ray.vectorization import GPTVectorizer


def users_program() -> None:
    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["good", "bad"])
    assert_type(clf, ZeroShotGPTClassifier)
    assert_type(clf.predict(["a text"]), NDArray[Any])
    assert_type(clf.predict_proba(["a text"]), NDArray[np.float64])
    assert_type(clf.predict_details(["a text"]), pd.DataFrame)
    assert_type(clf.score(["a text"], ["good"]), float)
    assert_type(MultiLabelZeroShotGPTClassifier().score(["a text"], [["good"]]), float)
    assert_type(GPTSummarizer().fit_transform(["a text"]), NDArray[Any])
    assert_type(GPTVectorizer().fit_transform(["a text"]), NDArray[Any])
    # A misspelt parameter: were it let through, the comment below would be called unused.
    ZeroShotGPTClassifier(modle="gguf::demo")  # type: ignore[call-arg]
