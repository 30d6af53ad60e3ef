"""All indexes: the nearest first, no more than there are, and the same after a journey."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from skllm_ray.classification import DynamicFewShotGPTClassifier
from skllm_ray.errors import MissingExtraError
from skllm_ray.memory import IndexConstructor, MemoryIndex, SklearnMemoryIndex
from skllm_ray.memory._annoy import AnnoyMemoryIndex

VECTORS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


@pytest.fixture(params=[SklearnMemoryIndex, AnnoyMemoryIndex])
def new(request):
    if request.param is AnnoyMemoryIndex:
        pytest.importorskip("annoy")
    return IndexConstructor(request.param, metric="euclidean")


def built(new):
    index = new()
    for vector in VECTORS:
        index.add(vector)
    index.build()
    return index


def test_the_nearest_come_first(new):
    index = built(new)
    assert isinstance(index, MemoryIndex)
    found = index.retrieve(VECTORS[:10], 3)
    assert [row[0] for row in found] == list(range(10))
    exact = np.argsort(((VECTORS[:10, None] - VECTORS[None]) ** 2).sum(-1), axis=1)[:, :3]
    shared = [len(set(a) & set(b)) for a, b in zip(found, exact.tolist(), strict=True)]
    assert np.mean(shared) >= (3 if isinstance(index, SklearnMemoryIndex) else 2.5)  # Annoy is approximate
    assert len(index.retrieve(VECTORS[:1], 80)[0]) == 50


def test_an_index_travels(new):
    index = built(new)
    there = pickle.loads(pickle.dumps(index))
    assert there.retrieve(VECTORS, 5) == index.retrieve(VECTORS, 5)


def test_wrong_use_is_told(new):
    index = new()
    index.add(VECTORS[0])
    with pytest.raises(RuntimeError, match="not built"):
        index.retrieve(VECTORS, 1)
    index.build()
    with pytest.raises(RuntimeError, match="no more vectors"):
        index.add(VECTORS[0])


def test_a_missing_annoy_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "annoy", None)
    with pytest.raises(MissingExtraError, match=r"skllm-ray\[annoy\]"):
        AnnoyMemoryIndex()


@pytest.mark.usefixtures("local_mode")
def test_a_classifier_takes_any_index(new):
    X = ["I love it.", "Broke at once.", "Works like a charm.", "Terrible."]
    y = ["positive", "negative"] * 2
    clf = DynamicFewShotGPTClassifier(model="gguf::demo", n_examples=1, memory_index=new).fit(X, y)
    assert set(clf.predict(X)) <= set(y)
    assert pickle.loads(pickle.dumps(clf)).render_prompt(X) == clf.render_prompt(X)
