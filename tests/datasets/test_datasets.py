"""The packaged sample texts are complete, balanced and free of duplicates."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from io import StringIO
from itertools import pairwise

import pytest

from skllm_ray import datasets

SENTIMENTS = {"positive", "negative", "neutral"}
TOPICS = {"business", "food", "health", "politics", "sports", "technology", "travel"}
SUBJECTS = {"quality", "price", "delivery", "packaging", "customer support", "ease of use", "variety", "returns"}

LABELLED = [
    pytest.param(datasets.get_classification_dataset, SENTIMENTS, 10, id="classification"),
    pytest.param(datasets.get_reviews_dataset, SENTIMENTS, 100, id="reviews"),
    pytest.param(datasets.get_topics_dataset, TOPICS, 10, id="topics"),
]


def assert_distinct_texts(texts: list[str], n_texts: int) -> None:
    assert isinstance(texts, list)
    assert len(texts) == n_texts
    assert all(isinstance(text, str) and text and text == text.strip() for text in texts)
    assert len({" ".join(text.lower().split()) for text in texts}) == n_texts


def test_all_names_the_public_functions() -> None:
    assert datasets.__all__ == sorted(datasets.__all__)
    assert all(callable(getattr(datasets, name)) for name in datasets.__all__)


@pytest.mark.parametrize(("load", "classes", "n_per_class"), LABELLED)
def test_labelled_texts_are_balanced(
    load: Callable[[], tuple[list[str], list[str]]], classes: set[str], n_per_class: int
) -> None:
    texts, labels = load()
    assert_distinct_texts(texts, n_per_class * len(classes))
    assert isinstance(labels, list)
    assert Counter(labels) == dict.fromkeys(classes, n_per_class)


def test_classification_texts_come_class_by_class() -> None:
    _, labels = datasets.get_classification_dataset()
    assert labels == ["positive"] * 10 + ["negative"] * 10 + ["neutral"] * 10


@pytest.mark.parametrize("load", [datasets.get_reviews_dataset, datasets.get_topics_dataset])
def test_larger_sets_are_shuffled(load: Callable[[], tuple[list[str], list[str]]]) -> None:
    _, labels = load()
    n_changes = sum(before != after for before, after in pairwise(labels))
    assert n_changes > len(labels) / 2


def test_reviews_vary_in_length() -> None:
    texts, _ = datasets.get_reviews_dataset()
    n_words = [len(text.split()) for text in texts]
    assert min(n_words) >= 4
    assert max(n_words) <= 60
    assert sum(n <= 8 for n in n_words) >= 30
    assert sum(n >= 30 for n in n_words) >= 20


def test_reviews_open_differently() -> None:
    texts, _ = datasets.get_reviews_dataset()
    openings = Counter(" ".join(text.lower().split()[:3]) for text in texts)
    assert max(openings.values()) <= 2


def test_film_reviews_are_not_among_the_customer_reviews() -> None:
    films, _ = datasets.get_classification_dataset()
    reviews, _ = datasets.get_reviews_dataset()
    assert not set(films) & set(reviews)


def test_multilabel_texts_have_one_to_three_known_subjects() -> None:
    texts, labels = datasets.get_multilabel_classification_dataset()
    assert_distinct_texts(texts, 10)
    assert len(labels) == len(texts)
    assert all(isinstance(row, list) and 1 <= len(row) == len(set(row)) <= 3 for row in labels)
    assert {label for row in labels for label in row} == SUBJECTS


def test_paragraphs_to_summarize_are_longer_than_their_summaries() -> None:
    texts = datasets.get_summarization_dataset()
    assert_distinct_texts(texts, 10)
    assert all(len(text.split()) >= 35 for text in texts)


def test_texts_to_translate() -> None:
    texts = datasets.get_translation_dataset()
    assert_distinct_texts(texts, 6)
    assert not all(text.isascii() for text in texts)


@pytest.mark.parametrize("name", datasets.__all__)
def test_callers_get_their_own_copy(name: str) -> None:
    load = getattr(datasets, name)
    first = load()
    for part in first if isinstance(first, tuple) else (first,):
        part.clear()
    again = load()
    assert all(again) if isinstance(again, tuple) else again


@pytest.mark.parametrize("filename", ["reviews.csv", "topics.csv"])
def test_csv_is_packaged_beside_the_module(filename: str) -> None:
    path = files("skllm_ray.datasets").joinpath(filename)
    assert path.is_file()
    reader = csv.DictReader(StringIO(path.read_text(encoding="utf-8"), newline=""))
    rows = list(reader)
    assert reader.fieldnames == ["text", "label"]
    assert all(None not in row and None not in row.values() for row in rows)
