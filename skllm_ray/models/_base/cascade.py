"""What a cascade keeps and knows: its parameters, its two classifiers, and the path from rows to what is delivered."""

from __future__ import annotations

import functools
import operator
from typing import Any, ClassVar, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from skllm_ray.cascade import AgreementScore, Audit, Certificate
from skllm_ray.cascade.agreement import SCORES
from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, InputError, warn
from skllm_ray.execution.plan import Plan, Promised
from skllm_ray.models._base import scoring
from skllm_ray.models._base.cascade_delivery import Delivery
from skllm_ray.models._base.cascade_job import CascadeOfModels
from skllm_ray.models._base.cascade_reading import CascadeReading
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.columns import column
from skllm_ray.models._base.constraints import Constraints, Has, OneOf, Share, Whole, check_values
from skllm_ray.models._base.docs_link import DocsLink
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.inputs import Texts, refuse_missing
from skllm_ray.models._base.labelling import Rows, innermost, labels_of
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.pair import check_pair, is_fitted, is_of_several
from skllm_ray.models._base.sklearn_bases import BaseEstimator, ClassifierMixin
from skllm_ray.models._base.taught import TaughtClassifier, TaughtRows
from skllm_ray.models._base.two_stages import Asked, Decision, Stages, Terms, ask_finite, ask_stream
from skllm_ray.tasks.base import Task


class CascadeBase(DocsLink, ClassifierMixin, BaseEstimator):
    """Base of a cascade: all but what users call."""

    _parameter_constraints: ClassVar[Constraints] = {
        "fast": [Has("fit", "a classifier")],
        "strong": [Has("fit", "a classifier")],
        "max_disagreement": [Share()],
        "confidence": [Share()],
        "n_samples": [Whole(1), None],
        "score": [OneOf(*SCORES)],
        "audit_share": [Share(zero=True)],
        "n_repeats": [Whole(0), None],
        "random_state": [Whole(0, 2**32 - 1), None],
    }

    fast_: Any
    strong_: Any
    certificate_: Certificate
    agreement_: AgreementScore
    """What scores the fast labels."""

    fast: Any
    strong: Any
    max_disagreement: float
    confidence: float
    n_samples: int | None
    audit_share: float
    n_repeats: int | None
    random_state: int | None

    @property
    def score(self) -> Any:
        """The method ``score(X, y, sample_weight=None)``, which returns the accuracy of the labels.

        The parameter of the same name is in ``get_params()["score"]``.
        """
        return self._accuracy

    @score.setter
    def score(self, value: str) -> None:
        self.__dict__["score"] = value

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add those of both classifiers.

        Returns
        -------
        dict
            By name.
        """
        return {**super().get_params(deep), "score": vars(self)["score"]}

    @property
    def classes_(self) -> NDArray[Any]:
        """The strong classifier's labels."""
        return np.asarray(self._pair()[1].classes_)

    @property
    def audit_(self) -> Audit:
        """What became of the kept labels that were audited: of all calls and Datasets since the certificate."""
        running = vars(self).get("_running", ())
        told: list[Audit] = [*filter(None, [vars(self).get("_audited")]), *(one.total() for one in running)]
        if not told:
            raise AttributeError("No label was audited yet: audit_share is 0, or nothing was predicted.")
        return functools.reduce(operator.add, told[1:], told[0])

    @property
    def n_features_in_(self) -> int:
        """The columns of a table that the fast classifier was fitted with; there is none for texts."""
        return int(self._pair()[0].n_features_in_)

    # --- as a batch job's estimator ----------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The strong model's name."""
        return str(innermost(self._pair()[1])[0].model)

    @property
    def on_error(self) -> OnError:
        """What becomes of rows for which the strong classifier fails."""
        return self._mode(None)

    def _of_models(self) -> CascadeOfModels:
        """Return the pair as one estimator; what cannot work in a batch job is raised."""
        self._check()
        terms = self._terms()
        promise = Promised(
            float(terms.max_disagreement), float(terms.confidence), terms.n_samples, terms.seed,
            float(self.audit_share), terms.learns_score, terms.n_repeats,
        )  # fmt: skip
        return CascadeOfModels(*self._pair(), promise)

    def _task(self) -> Task[Any]:
        return self._of_models().task()

    def _checked_plan(self) -> Plan:
        return self._of_models().plan()

    def _secrets(self) -> dict[str, Secret]:
        return self._of_models().secrets()

    def _reading(self) -> CascadeReading:
        return self._of_models().reading()

    # --- inside ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return what travels: of audits that go on in this process, how they stand."""
        state = dict(super().__getstate__())
        if state.pop("_running", None):
            state["_audited"] = self.audit_
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return "fast_" in vars(self) or (is_fitted(self.fast) and is_fitted(self.strong))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if isinstance(self.fast, BaseEstimator):
            tags.input_tags = get_tags(self.fast).input_tags
        if isinstance(self.strong, BaseEstimator):
            tags.input_tags.sparse &= get_tags(self.strong).input_tags.sparse
        tags.non_deterministic = True
        return tags

    def _accuracy(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        check_is_fitted(self)
        truth = column(y, "y")[0]
        if len(Rows.of(X)) != len(truth):
            raise InputError(f"X has {len(Rows.of(X))} rows but y has {len(truth)} labels.", "Pass one label per row.")
        scoring.check_truth(truth, sample_weight, self.classes_)
        return scoring.accuracy(self.predict(X).tolist(), truth, sample_weight)

    def _pair(self) -> tuple[Any, Any]:
        """Return both classifiers, fitted."""
        if "fast_" not in vars(self):
            check_values(self)  # what is no classifier is not merely not fitted
        check_is_fitted(self)
        return (self.fast_, self.strong_) if "fast_" in vars(self) else (self.fast, self.strong)

    def _check(self) -> None:
        """Raise what cannot work, before anything is asked."""
        check_values(self)
        check_pair(*self._pair())

    def _paid(self) -> TaughtRows:
        """Return the strong labels that were paid for when the strong classifier taught the fast one.

        Where another one taught it, the rows that taught it count as all others do: they were chosen before the sample.
        """
        student, _ = innermost(self._pair()[0])
        is_strong = isinstance(student, TaughtClassifier) and student.teacher_ is self._pair()[1]
        return student.taught_ if is_strong else TaughtRows({})

    def _known(self, rows: Rows) -> dict[int, Any]:
        """Return the strong labels that are there already, by position."""
        paid = self._paid()
        if rows.texts is None or not paid.labels:
            return {}
        at = rows.present[paid.among(rows.take(rows.present))]
        return dict(zip(at.tolist(), paid.labels_of(rows.take(at)), strict=True))

    def _deliver(self, X: Any, on_error: OnError | None) -> tuple[Delivery, OnError]:
        """Ask, and return what is to be delivered; all that is known to fail is raised before."""
        mode = self._mode(on_error)
        self._check()
        rows = Rows.of(X)
        if mode == "raise" and rows.texts is not None:
            refuse_missing(Texts(rows.texts, rows.index))
        known = self._known(rows)
        chosen = np.setdiff1d(rows.present, list(known))
        if not len(chosen):
            return Delivery(rows, chosen, Stages.empty(), np.zeros(0), known), mode
        asked = Asked(*self._pair(), rows, chosen)
        decision = self._of_stream()
        if decision is None:
            stages, decision = ask_finite(asked, self._terms())
            self._keep(decision)
        else:
            stages = ask_stream(asked, decision, self._seed, self.audit_share)
            self._note(stages, len(rows.present))
        return Delivery(rows, chosen, stages, decision.scores(stages.fast), known), mode

    def _keep(self, decision: Decision) -> None:
        self.certificate_, self.agreement_ = decision.certificate, decision.score
        self._forget_audits()

    def _forget_audits(self) -> None:
        for name in ("_audited", "_running"):
            self.__dict__.pop(name, None)

    def _note(self, stages: Stages, n_rows: int) -> None:
        """Add a call's audited rows to those of the calls before, and warn where the promise no longer holds."""
        if not self.audit_share:
            return
        n_kept = len(stages.fast.labels) - len(stages.asked) + len(stages.audited)
        strong = stages.strong.take(np.searchsorted(stages.asked, stages.audited))
        differ = ~stages.fast.take(stages.audited).agrees(strong)[strong.answered]
        promised = float(self.max_disagreement), float(self.confidence)
        told = Audit(n_rows, n_kept, len(differ), int(differ.sum()), *promised)
        before = vars(self).get("_audited")
        self._audited = told if before is None else before + told
        if self.audit_.alarm:
            warn(str(self.audit_))

    def _of_stream(self) -> Decision | None:
        """Return what `calibrate` decided, if it did."""
        certificate = vars(self).get("certificate_")
        if certificate is None or certificate.population != "stream":
            return None
        return Decision(certificate, self.agreement_)

    def _terms(self) -> Terms:
        learns = vars(self)["score"] == "learned"
        shares = self.max_disagreement, self.confidence
        return Terms(*shares, self.n_samples, learns, self._seed, int(self.n_repeats or 0))

    @property
    def _seed(self) -> int:
        return int(self.random_state or 0)

    def _mode(self, on_error: OnError | None) -> OnError:
        strong, _ = innermost(self._pair()[1])
        mode = on_error or (strong.on_error if isinstance(strong, LLMClassifier) else "raise")
        if mode not in get_args(OnError):
            raise ConfigurationError(f"on_error must be 'raise', 'default' or 'coerce'; got {mode!r}.")
        return mode

    def _filled(self, delivery: Delivery, mode: OnError) -> NDArray[np.object_]:
        """Return the labels, with a strong language model's default where a row failed and that is wanted."""
        labels, strong = delivery.labels(), innermost(self._pair()[1])[0]
        if mode == "default" and isinstance(strong, LLMClassifier) and delivery.rows.texts is not None:
            for position in (*delivery.failed(), *delivery.rows.missing):
                labels[position] = labels_of(strong, [strong._reading().default(delivery.rows.texts[position])])[0]
        return labels

    def _label_type(self) -> pa.DataType:
        kind = pa.string() if self.classes_.dtype.kind in "UO" else pa.from_numpy_dtype(self.classes_.dtype)
        return pa.list_(kind) if is_of_several(self._pair()[1]) else kind

    def _array(self, labels: NDArray[np.object_]) -> NDArray[Any]:
        strong, _ = innermost(self._pair()[1])
        if isinstance(strong, MultiLabelClassifier):
            return _padded(labels, max(strong.max_labels, innermost(self._pair()[0])[0].max_labels))
        known = set(self.classes_.tolist())
        return labels.astype(self.classes_.dtype) if set(labels.tolist()) <= known else labels


def _padded(labels: NDArray[np.object_], width: int) -> NDArray[np.object_]:
    """Return tuples of labels as rows, padded with ``""``; a row without an answer is all None."""
    rows = [[None] * width if one is None else [*one, *[""] * (width - len(one))] for one in labels]
    return np.asarray(rows, dtype=object)
