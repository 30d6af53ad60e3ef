"""The containers, texts and labels that estimators take and refuse."""

from __future__ import annotations

from collections import UserList

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from skllm_ray.errors import InputError
from skllm_ray.models._base.inputs import as_label_lists, as_labels, as_texts, refuse_missing

THREE = ["one", "two ", "třetí 😀"]


@pytest.mark.parametrize(
    "X",
    [
        THREE,
        tuple(THREE),
        np.array(THREE),
        np.array(THREE, dtype=object),
        np.array(THREE).reshape(3, 1),
        pd.Series(THREE),
        pd.Series(THREE, dtype=object),
        pd.Series(THREE, dtype="category"),
        pd.Series(THREE, dtype="string[pyarrow]"),
        pd.DataFrame({"text": THREE}),
        pa.array(THREE),
        pa.chunked_array([THREE[:1], THREE[1:]]),
        pa.table({"text": THREE}),
        pl.Series(THREE),
        pl.DataFrame({"text": THREE}),
        [np.str_(text) for text in THREE],
        pd.Categorical(THREE),
        pd.Index(THREE),
        pd.array(THREE, dtype="string"),
        pa.array(THREE).dictionary_encode(),
        pa.record_batch({"text": THREE}),
        nw.from_native(pl.Series(THREE), series_only=True),
        nw.from_native(pd.DataFrame({"text": THREE})),
        nw.from_native(pl.DataFrame({"text": THREE})),
        UserList(THREE),
    ],
    ids=lambda X: f"{type(X).__module__.partition('.')[0]}-{type(X).__name__}",
)
def test_a_column_of_texts_is_taken_as_it_is(X):
    texts = as_texts(X)
    assert texts.values == THREE
    assert {type(value) for value in texts.values} == {str}
    assert list(texts.index) == [0, 1, 2]
    assert (texts.present, texts.missing) == ([0, 1, 2], [])


@pytest.mark.parametrize(
    "X", [pd.Series(THREE, index=["c", "a", "a"]), pd.DataFrame({0: THREE}, index=["c", "a", "a"])]
)
def test_an_index_is_kept(X):
    pd.testing.assert_index_equal(as_texts(X).index, X.index)


def test_columns_of_libraries_that_may_be_missing_are_taken():
    frame = pd.DataFrame({"text": THREE}, index=["c", "a", "b"])
    datasets, dask = pytest.importorskip("datasets"), pytest.importorskip("dask.dataframe")
    ours = datasets.Dataset.from_dict({"text": THREE})
    for X in (ours, ours["text"], ours.with_format("arrow")["text"][:]):
        assert as_texts(X).values == THREE
    for X in (dask.from_pandas(frame, sort=False), dask.from_pandas(frame, sort=False)["text"]):
        assert as_texts(X).values == THREE
        assert list(as_texts(X).index) == ["c", "a", "b"]
    with pytest.raises(InputError, match="X has 2 columns"):
        as_texts(ours.add_column("other", THREE))
    with pytest.raises(TypeError, match=r"DatasetDict of Hugging Face datasets.*ds\['text'\]"):
        as_texts(datasets.DatasetDict({"train": ours}))


FakeRayDataset = type("Dataset", (), {"__module__": "ray.data.dataset"})


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("one text", TypeError, r"X must be a collection of texts; got a single str\. Write \[X\]"),
        (b"one", TypeError, "got a single bytes"),
        ({"text": THREE}, TypeError, r"got dict\.$"),
        ((text for text in THREE), TypeError, r"got generator\. Write list\(X\)"),
        ({*THREE}, TypeError, r"got set\. Write list\(X\)"),
        (None, TypeError, r"got NoneType\.$"),
        (7, TypeError, r"got int\.$"),
        (FakeRayDataset(), TypeError, "Ray Dataset"),
        (pl.LazyFrame({"text": THREE}), TypeError, r"polars LazyFrame.*\.collect\(\)"),
        (nw.from_native(pl.LazyFrame({"text": THREE})), TypeError, r"narwhals LazyFrame.*\.collect\(\)"),
        (nw.from_native(pl.DataFrame({"a": THREE, "b": THREE})), InputError, "X has 2 columns"),
        (pd.Categorical([1, 2]), InputError, "of type int"),
        (pd.DataFrame({"a": THREE, "b": THREE}), InputError, r"X has 2 columns.*X\['text'\]"),
        (pd.DataFrame(index=[1, 2]), InputError, "X has 0 columns"),
        (np.array([THREE, THREE]), InputError, "X has 3 columns"),
        (np.array([[["x"]]]), InputError, "one dimension; it has 3"),
        (np.array("x"), InputError, "one dimension; it has 0"),
        (pa.table({"a": THREE, "b": THREE}), InputError, "X has 2 columns"),
        (pl.DataFrame({"a": THREE, "b": THREE}), InputError, "X has 2 columns"),
        ([], InputError, "X holds no texts"),
        (pd.Series([], dtype=object), InputError, "X holds no texts"),
        (pa.array([], pa.string()), InputError, "X holds no texts"),
        ([1, "a"], InputError, r"X\[0\] is of type int\. .*astype\(str\)"),
        (np.arange(3), InputError, r"X\[0\] is of type int.*X\[2\] is of type int"),
        (["a", b"b", ["c"]], InputError, r"X\[1\] is of type bytes, X\[2\] is of type list"),
        (list(range(9)), InputError, r"X\[4\] is of type int and 4 more"),
    ],
)
def test_what_is_no_column_of_texts_is_refused_with_the_reason(X, error, message):
    with pytest.raises(error, match=message):
        as_texts(X)


@pytest.mark.parametrize(
    "X",
    [
        [None, "a", float("nan"), "", " \n\t"],
        np.array([None, "a", np.nan, "", "\u2003"], dtype=object),
        pd.Series([None, "a", pd.NA, "", "  "], dtype="string"),
        pd.Series([pd.NaT, "a", None, "", "  "], dtype=object),
        pa.array([None, "a", None, "", " "]),
        pl.Series([None, "a", None, "", " "]),
        np.array(["", "a", "", "", " "]),
    ],
    ids=lambda X: type(X).__module__,
)
def test_missing_and_blank_texts_are_found(X):
    texts = as_texts(X)
    assert (texts.values, texts.present, texts.missing) == ([None, "a", None, None, None], [1], [0, 2, 3, 4])
    with pytest.raises(
        InputError, match=r"X has 4 missing or blank text\(s\), at position\(s\) 0, 2, 3, 4\. .*on_error"
    ):
        refuse_missing(texts)


def test_of_many_missing_texts_the_first_are_named():
    with pytest.raises(InputError, match=r"9 missing .* 0, 1, 2, 3, 4, …"):
        refuse_missing(as_texts([None] * 9))
    refuse_missing(as_texts(THREE))


@pytest.mark.parametrize(
    ("y", "n_texts", "described", "kind"),
    [
        (["b", "a"], None, False, "U"),
        (("b", "a", "b"), 3, False, "U"),
        (np.array(["b", "a"], dtype=object), None, False, "O"),
        (pd.Series(["b", "a"], index=[5, 6]), None, False, "U"),
        (pa.array(["b", "a"]), None, False, "U"),
        (np.array([["b"], ["a"]]), None, False, "U"),
        ([1, 0], None, True, "i"),
        (np.array([1, 0, 1], dtype=np.int8), 3, True, "i"),
        ([False, True], None, True, "b"),
    ],
)
def test_labels_keep_their_kind_and_order(y, n_texts, described, kind):
    labels = as_labels(y, n_texts, described)
    assert labels.dtype.kind == kind
    assert labels.ravel().tolist() == [value[0] if isinstance(value, list) else value for value in np.array(y).tolist()]


@pytest.mark.parametrize(
    ("y", "n_texts", "described", "message"),
    [
        (None, None, False, "y is None"),
        ([], None, False, "y holds no labels"),
        (["a", " "], None, False, r"y\[1\] is an empty label"),
        (["a", "b", "a"], None, False, "y repeats 'a': without X"),
        (["only"], None, False, "single label 'only'"),
        (["only", "only"], 2, False, "single label 'only'"),
        ([0, 1], None, False, r"y\[0\] is 0, of type int.*label_names=.*predict_proba"),
        (np.array([0, 1]), None, False, r"y\[0\] is 0"),
        ([0.5, 1.5], None, True, "of type float"),
        ([True, False], None, False, r"y\[0\] is True, of type bool"),
        (["a", None], None, False, r"y\[1\] is missing"),
        (["a", float("nan")], None, True, r"y\[1\] is missing"),
        (pd.Series(["a", pd.NA]), None, False, r"y\[1\] is missing"),
        (["a", "b"], 3, False, "X has 3 texts but y has 2 labels"),
        (["a", b"b"], None, False, "of type bytes"),
        ([["a"], ["b"]], None, False, "of type list"),
    ],
)
def test_labels_that_cannot_work_are_refused_with_the_reason(y, n_texts, described, message):
    with pytest.raises(InputError, match=message):
        as_labels(y, n_texts, described)


def test_a_single_str_is_no_collection_of_labels():
    with pytest.raises(TypeError, match=r"y must be a collection.*Write \[y\]"):
        as_labels("positive", None, False)


@pytest.mark.parametrize(
    ("y", "n_texts", "lists"),
    [
        ([["a", "b"]], None, [["a", "b"]]),
        ([["a"], ["b", "a"]], None, [["a"], ["b", "a"]]),
        ([["a"], []], 2, [["a"], []]),
        ((("a", "b"), ["c"]), 2, [["a", "b"], ["c"]]),
        ([{"a"}, np.array(["b", "c"])], 2, [["a"], ["b", "c"]]),
        (pd.Series([["a"], ["b"]]), 2, [["a"], ["b"]]),
    ],
)
def test_lists_of_labels(y, n_texts, lists):
    assert as_label_lists(y, n_texts) == lists


@pytest.mark.parametrize(
    ("y", "n_texts", "message"),
    [
        (None, None, "y must be a list of label lists; got NoneType"),
        ("ab", None, "got str"),
        (["a", "b"], 2, r"y\[0\] is of type str"),
        ([["a"], "b"], None, r"y\[1\] is of type str"),
        ([], None, "it is empty"),
        ([[], []], None, "y holds no labels"),
        ([["a", ""]], None, "empty label"),
        ([["a", None]], None, "is missing"),
        ([["a", 1]], None, "of type int"),
        ([["a", "b", "a"]], None, "y repeats 'a'"),
        ([["a"], ["b"]], 3, "X has 3 texts but y has 2 label lists"),
    ],
)
def test_lists_of_labels_that_cannot_work_are_refused(y, n_texts, message):
    with pytest.raises(InputError, match=message):
        as_label_lists(y, n_texts)
