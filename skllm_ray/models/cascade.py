"""A cheap classifier where it is sure, an expensive one elsewhere, and a certificate of how far they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone

from skllm_ray.errors import PartialResultError, warn
from skllm_ray.models._base.cascade import CascadeBase
from skllm_ray.models._base.columns import check_new_columns
from skllm_ray.models._base.constraints import check_values
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.labelling import Rows, innermost
from skllm_ray.models._base.pair import check_pair, is_fitted
from skllm_ray.models._base.taught import TaughtClassifier
from skllm_ray.models._base.two_stages import Asked, calibrated

__all__ = ["CascadeClassifier"]


class CascadeClassifier(CascadeBase):
    """Keep a fast classifier's labels where it is sure, ask a strong one elsewhere, and certify how far they differ.

    With probability at least `confidence`, at most a share `max_disagreement` of the rows carries a label that differs
    from what `strong` would have said. No true labels are needed: `strong` is asked about a random sample of the rows,
    and the sample tells how sure `fast` must be. The statement holds for any classifiers and any finite number of rows;
    it says nothing of whether `strong` is right.

    `predict` certifies the rows of its own call. For many small calls, `calibrate` certifies once, for rows like those
    that it is given, and `predict` then samples nothing.

    Parameters
    ----------
    fast : classifier
        With ``predict_proba``: a small language model, a pipeline, a :class:`DistilledClassifier`, any classifier of
        scikit-learn's. Its label is the one of the highest probability.
    strong : classifier
        Any classifier. Its labels must include all of the fast one's.
    max_disagreement : float, default=0.05
        The largest share of all rows whose label may differ.
    confidence : float, default=0.95
        The probability, over the draw of the sample, with which that holds.
    n_samples : int or None, default=None
        How many rows both are asked about. None: the number of rows to the power of 2/3, at least 300, at most 10,000;
        for `calibrate`, all rows, at most 10,000.
    score : {"probability", "learned"}, default="probability"
        By what fast labels are kept: their probability, or a score that one half of the sample teaches and the other
        certifies.
    audit_share : float, default=0.0
        The share of kept labels that `strong` is asked about all the same: with the threshold that `calibrate` found,
        in `predict_dataset` and in batch jobs; the row then has its label. ``audit_`` tells what comes of it, and a
        warning when more differ than was promised.
    n_repeats : int or None, default=None
        How many rows of the sample a strong language model is asked about twice; the certificate then tells how often
        it agrees with itself, which bounds the agreement that can be hoped for. None: none.
    random_state : int or None, default=None
        Seeds the sample; None is 0, so that the same call draws the same rows.

    Attributes
    ----------
    fast_, strong_ : classifier
        The fitted classifiers, after `fit`: copies, or those given where they were fitted already.
    classes_ : ndarray of shape (n_classes,)
        The strong classifier's labels.
    certificate_ : Certificate
        Of the last call of `predict` or `calibrate`.
    audit_ : Audit
        With an `audit_share`: of all calls of `predict` since `calibrate`, and of Datasets as they are consumed.

    Notes
    -----
    Both are asked about the sample first, so that one that cannot answer is found out cheaply. Sampled rows carry the
    strong label. Where the strong one fails in the sample, that is a disagreement; where the fast one fails, the row
    goes to the strong one. A second call with another `random_state`, until the outcome pleases, voids the promise.

    Two classifiers that are fitted need no `fit` of the cascade. `fit` fits the others; one that is fitted already
    stays as it is (``sklearn.base.clone`` makes it unfitted).

    Examples
    --------
    >>> import skllm_ray
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skllm_ray.classification import ZeroShotGPTClassifier
    >>> skllm_ray.init(local_mode=True)
    >>> texts = [f"{word} product, number {i}" for i in range(100) for word in ("Lovely", "Terrible")]
    >>> student = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts[:40], ["positive", "negative"] * 20)
    >>> teacher = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    >>> clf = CascadeClassifier(student, teacher, max_disagreement=0.05, n_samples=80)
    >>> clf.predict(texts).shape
    (200,)
    >>> print(clf.certificate_)
    With probability at least 95%, at most 5% of these 200 rows carry a label that differs from what the strong model
    would have said. It does not say that the strong model is right.
    >>> skllm_ray.shutdown()
    """

    def __init__(
        self,
        fast: Any,
        strong: Any,
        *,
        max_disagreement: float = 0.05,
        confidence: float = 0.95,
        n_samples: int | None = None,
        score: str = "probability",
        audit_share: float = 0.0,
        n_repeats: int | None = None,
        random_state: int | None = None,
    ) -> None:
        self.fast = fast
        self.strong = strong
        self.max_disagreement = max_disagreement
        self.confidence = confidence
        self.n_samples = n_samples
        self.score = score
        self.audit_share = audit_share
        self.n_repeats = n_repeats
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit those of the two classifiers that are not fitted. No certificate stays: it was for others.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,), table or None
            What both are fitted with.
        y : array-like of shape (n_samples,) or (n_classes,)
            The labels.

        Returns
        -------
        self

        Raises
        ------
        ConfigurationError
            If a parameter cannot work, or `fast` knows a label that `strong` does not.
        NotSupportedError
            If `fast` tells no probabilities.
        """
        check_values(self)
        fast, strong = (one if is_fitted(one) else clone(one).fit(X, y) for one in (self.fast, self.strong))
        check_pair(fast, strong)
        self.fast_, self.strong_ = fast, strong
        for name in ("certificate_", "agreement_"):
            self.__dict__.pop(name, None)
        self._forget_audits()
        return self

    def predict(self, X: Any, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return one label for each row, and certify these rows, unless `calibrate` has certified a stream.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,), or table
            The rows.
        on_error : {"raise", "default", "coerce"} or None, default=None
            What becomes of rows for which the strong classifier fails, and of missing texts; None takes a strong
            language model's own, and "raise" otherwise.

        Returns
        -------
        ndarray of shape (n_samples,)
            In the order of `X`.

        Raises
        ------
        ConfigurationError
            If ``n_samples`` is too small for the promise; before anything is asked.
        JobFailedError
            If either classifier fails for all sampled rows; before the others are asked about.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        delivery, mode = self._deliver(X, on_error)
        labels = self._filled(delivery, mode)
        if mode == "raise" and len(delivery.failed()):
            raise PartialResultError(*delivery.failures(), delivery.details(labels))
        return self._array(labels)

    def predict_details(self, X: Any, *, on_error: OnError | None = None) -> pd.DataFrame:
        """Return one line for each row: the label, how it came about, errors, tokens and cost of both classifiers.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,), or table
            The rows.
        on_error : {"default", "coerce"} or None, default=None
            What ``prediction`` holds for failed rows; with "raise" they are shown as with "coerce".

        Returns
        -------
        pandas.DataFrame of shape (n_samples, 15)
            The columns of a language model's ``predict_details``, and: ``stage``, "fast" where the fast label was kept,
            "sample" where the row was sampled, "audit" where a kept one was audited, "strong" where the row was asked
            of the strong classifier for another reason; ``score``; ``fast_label`` and ``strong_label`` where each was
            asked.
        """
        mode = self._mode(on_error)
        delivery, mode = self._deliver(X, "coerce" if mode == "raise" else mode)
        return delivery.details(self._filled(delivery, mode))

    def calibrate(self, X: Any) -> Self:
        """Certify for a stream of rows like these, and stay with that threshold: `predict` then samples nothing.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,), or table
            Rows that are drawn as those to come will be. Both classifiers are asked about all of them, or about
            ``n_samples`` of them, 10,000 at most.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If there are too few rows for the promise; before anything is asked.
        """
        self._check()
        rows = Rows.of(X)
        student, _ = innermost(self._pair()[0])
        chosen = rows.present
        if isinstance(student, TaughtClassifier) and rows.texts is not None:
            chosen = chosen[~student.taught_.among(rows.take(chosen))]
            if len(chosen) < len(rows.present):
                n_taught = len(rows.present) - len(chosen)
                warn(f"{n_taught:,} of {len(rows):,} rows taught the fast classifier, and certify nothing.")
        self._keep(calibrated(Asked(*self._pair(), rows, chosen), self._terms()))
        return self

    def predict_dataset(
        self, ds: Any, text_column: str = "text", *, output_prefix: str = "", details: bool = False,
        on_error: OnError | None = None,
    ) -> Any:  # fmt: skip
        """Return a lazy Ray Dataset with the columns of `ds` and the labels.

        Unless `calibrate` has certified a stream, the rows are counted first, which reads the column once; then both
        classifiers are asked about a sample of all rows, here, before anything lazy begins.

        Parameters
        ----------
        ds : ray.data.Dataset
            Rows of any number. They must be the same each time they are read.
        text_column : str, default="text"
            The column with the texts.
        output_prefix : str, default=""
            Put before the names of the new columns.
        details : bool, default=False
            Whether to add ``stage``, ``score``, ``fast_label``, ``strong_label`` and ``error`` too.
        on_error : {"raise", "default", "coerce"} or None, default=None
            As for `predict`. "raise" ends the execution at the first block with a failed row.

        Returns
        -------
        ray.data.Dataset
            The columns of `ds` and ``prediction``.
        """
        from skllm_ray.execution.dataset_columns import column_names
        from skllm_ray.models._base import cascade_dataset

        self._check()
        wanted = cascade_dataset.Wanted(output_prefix, details, self._mode(on_error), self._label_type())
        check_new_columns(column_names(ds), text_column, wanted.types)
        pair, terms, paid, decision = self._pair(), self._terms(), self._paid(), self._of_stream()
        if decision is not None:
            threshold = cascade_dataset.Threshold(decision, terms.seed, {}, paid)
        else:
            threshold = cascade_dataset.certified(ds, text_column, pair, terms, paid)
            self._keep(threshold.decision)
        threshold = replace(threshold, audit_share=float(self.audit_share))
        audit = cascade_dataset.begin_audit(threshold, type(innermost(pair[1])[0]).__name__)
        if audit is not None:
            self._running = [*vars(self).get("_running", ()), audit]
        return cascade_dataset.map_cascade(ds, text_column, pair, threshold, wanted, audit)
