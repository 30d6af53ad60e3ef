"""A plain scikit-learn classifier that learns a language model's labels, and then answers without any model."""

from __future__ import annotations

from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skllm_ray.cascade import Certificate, random_keys
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, NotSupportedError, warn
from skllm_ray.models._base.columns import column
from skllm_ray.models._base.constraints import Constraints, Has, Whole, check_values
from skllm_ray.models._base.inputs import as_texts, refuse_missing
from skllm_ray.models._base.labelling import Labelling, label_rows
from skllm_ray.models._base.pair import has_probabilities, is_fitted, is_of_several
from skllm_ray.models._base.student import default_student
from skllm_ray.models._base.student_file import load_student, prompt_hash, save_student
from skllm_ray.models._base.taught import TaughtClassifier, TaughtRows
from skllm_ray.models.cascade import CascadeClassifier

__all__ = ["DistilledClassifier"]


class DistilledClassifier(TaughtClassifier):
    """Ask a teacher about some texts, train a student on its labels, and predict with the student alone.

    The student needs no model, no key and no network. It is as good as its teacher at most; how far it differs,
    `as_cascade` certifies, and asks the teacher where the student is unsure.

    Parameters
    ----------
    teacher : classifier
        Any classifier of texts with one label for each, fitted or not.
    student : classifier or None, default=None
        A classifier of texts with ``predict_proba``, such as a pipeline. None: TF-IDF of words and pairs of words, and
        of three to five characters within words, with logistic regression.
    n_samples : int, default=2000
        How many different texts the teacher is asked about, drawn at random.
    random_state : int or None, default=None
        Seeds the draw; None is 0.

    Attributes
    ----------
    teacher_ : classifier
        The fitted teacher; None in a student that was loaded without one.
    student_ : classifier
        The trained student.
    classes_ : ndarray of shape (n_classes,)
        The labels that the teacher gave.
    n_taught_ : int
        How many texts trained the student.
    prompt_hash_ : str or None
        A hash of what a language model was asked; None for other teachers.
    certificate_ : Certificate
        In a loaded student that was saved with one.

    Examples
    --------
    >>> import skllm_ray
    >>> from skllm_ray.classification import ZeroShotGPTClassifier
    >>> skllm_ray.init(local_mode=True)
    >>> texts = [f"{word} product, number {i}" for i in range(20) for word in ("Lovely", "Terrible")]
    >>> teacher = ZeroShotGPTClassifier(model="gguf::demo")
    >>> clf = DistilledClassifier(teacher, n_samples=40).fit(texts, ["negative", "positive"])
    >>> clf.predict(["A lovely lamp", "A terrible chair"]).tolist()
    ['positive', 'negative']
    >>> skllm_ray.shutdown()
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "teacher": [Has("fit", "a classifier"), None],
        "student": [Has("fit", "a classifier"), None],
        "n_samples": [Whole(2)],
        "random_state": [Whole(0, 2**32 - 1), None],
    }

    student_: Any
    classes_: NDArray[Any]
    n_taught_: int
    prompt_hash_: str | None
    certificate_: Certificate

    def __init__(
        self, teacher: Any, student: Any = None, *, n_samples: int = 2000, random_state: int | None = None
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.n_samples = n_samples
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Ask the teacher about a sample of the texts, and train the student on what it says.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            Texts like those to come.
        y : array-like of shape (n_samples,) or (n_classes,), or None
            What a teacher that is not fitted is fitted with: one label for each text, or the candidate labels. The
            student learns none of it.

        Returns
        -------
        self

        Raises
        ------
        ConfigurationError
            If a parameter cannot work, or the teacher is not fitted and there is no `y`.
        JobFailedError
            If the teacher answers nothing.
        """
        check_values(self)
        texts = as_texts(X)
        refuse_missing(texts)
        different = list(dict.fromkeys(text for text in texts.values if text is not None))
        student = self._unfitted_student(min(len(different), self.n_samples))
        teacher = self._fitted_teacher(X, y, len(texts.values))
        order = np.argsort(random_keys(int(self.random_state or 0), "teach", np.arange(len(different))))
        chosen = [different[at] for at in sorted(order[: self.n_samples])]
        said = label_rows(teacher, chosen, scored=False)
        self._learn(student, [chosen[at] for at in np.flatnonzero(said.answered)], said)
        self.teacher_, self.prompt_hash_ = teacher, prompt_hash(teacher)
        self.__dict__.pop("certificate_", None)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the student's label of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        texts = self._texts(X)
        return np.asarray(self.student_.predict(texts))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of every label for every text, as the student tells it.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        texts = self._texts(X)
        return np.asarray(self.student_.predict_proba(texts), np.float64)

    def as_cascade(
        self, *, max_disagreement: float = 0.05, confidence: float = 0.95, n_samples: int | None = None,
        score: str = "probability", audit_share: float = 0.0, n_repeats: int | None = None,
        random_state: int | None = None,
    ) -> CascadeClassifier:  # fmt: skip
        """Return a cascade of the student and its teacher.

        Texts that trained the student are no rows that the certificate counts; where they come again, they have the
        teacher's label, which was paid for.

        Parameters
        ----------
        max_disagreement, confidence, n_samples, score, audit_share, n_repeats, random_state
            As for :class:`CascadeClassifier`.

        Returns
        -------
        CascadeClassifier
        """
        check_is_fitted(self)
        if self.teacher_ is None:
            raise ConfigurationError(
                "This student was loaded without its teacher.", "Pass it: DistilledClassifier.load(path, teacher=…)."
            )
        return CascadeClassifier(
            self, self.teacher_, max_disagreement=max_disagreement, confidence=confidence, n_samples=n_samples,
            score=score, audit_share=audit_share, n_repeats=n_repeats, random_state=random_state,
        )  # fmt: skip

    @classmethod
    def of_labels(cls, texts: Any, labels: Any, student: Any = None, *, random_state: int | None = None) -> Self:
        """Return a student of labels that are there already, such as a job's, corrected by people.

        Parameters
        ----------
        texts : array-like of str of shape (n_samples,)
            The texts.
        labels : array-like of shape (n_samples,)
            Their labels.
        student : classifier or None, default=None
            As for the class.
        random_state : int or None, default=None
            Seeds the training.

        Returns
        -------
        DistilledClassifier
            Without a teacher.

        Examples
        --------
        >>> texts = ["good film", "bad film", "good food", "bad food"]
        >>> clf = DistilledClassifier.of_labels(texts, ["+", "-", "+", "-"])
        >>> clf.predict(["a good book"]).tolist()
        ['+']
        """
        found, given = as_texts(texts), column(labels, "labels")[0]
        refuse_missing(found)
        rows = [text for text in found.values if text is not None]
        made = cls(None, student, n_samples=max(2, len(rows)), random_state=random_state)
        check_values(made)
        if len(given) != len(rows) or len(set(given)) < 2:
            raise InputError(
                f"labels must hold one label for each of {len(rows):,} texts, and two different ones at least; got "
                f"{len(given):,}, {len(set(given)):,} of them different."
            )
        made.teacher_, made.prompt_hash_ = None, None
        made._train(made._unfitted_student(len(rows)), rows, list(given))
        return made

    def save(self, path: str | PathLike[str], *, certificate: Certificate | None = None) -> None:
        """Write the student as skops' format does, and beside it a JSON file with what it is and who taught it.

        Neither file holds a text, a key or the teacher itself. skops is in the extra ``skllm-ray[skops]``.

        Parameters
        ----------
        path : str or path
            Such as "topics.skops"; the other file is then "topics.json".
        certificate : Certificate or None, default=None
            A cascade's, to be kept with the student.
        """
        check_is_fitted(self)
        save_student(self, path, certificate)

    @classmethod
    def load(cls, path: str | PathLike[str], teacher: Any = None, *, trusted: list[str] | None = None) -> Self:
        """Return a saved student.

        Parameters
        ----------
        path : str or path
            As given to `save`.
        teacher : classifier or None, default=None
            The fitted teacher, for `as_cascade`. Another model or prompt than the student was taught by is refused.
        trusted : list of str or None, default=None
            Types of a student of your own that may be loaded, as skops names them. scikit-learn's are trusted, and so
            are those of the default student.

        Returns
        -------
        DistilledClassifier
        """
        return load_student(cls, path, teacher, trusted or [])

    # --- inside ---------------------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return "student_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def _texts(self, X: Any) -> list[str]:
        check_is_fitted(self)
        texts = as_texts(X)
        refuse_missing(texts)
        return [text for text in texts.values if text is not None]

    def _unfitted_student(self, n_rows: int) -> Any:
        """Return what is to be trained; raise if no cascade could use it, before the teacher is asked."""
        if self.student is None:
            return default_student(n_rows, random_state=int(self.random_state or 0))
        if not has_probabilities(self.student):
            raise NotSupportedError(
                f"student={type(self.student).__name__} has no predict_proba.",
                "CalibratedClassifierCV gives it to any of scikit-learn's.",
            )
        return clone(self.student)

    def _fitted_teacher(self, X: Any, y: Any, n_texts: int) -> Any:
        teacher = self.teacher
        if not is_fitted(teacher):
            if y is None:
                raise ConfigurationError(
                    f"teacher={type(teacher).__name__} is not fitted, and y is None.",
                    "Fit it, or pass the candidate labels: fit(X, ['positive', 'negative']).",
                )
            teacher = clone(teacher).fit(X if len(y) == n_texts else None, y)
        if is_of_several(teacher):
            raise NotSupportedError(f"teacher={type(teacher).__name__} gives several labels; a student learns one.")
        return teacher

    def _learn(self, student: Any, texts: list[str], said: Labelling) -> None:
        """Train the student on the rows that the teacher answered."""
        labels = [label for label, fine in zip(said.labels, said.answered, strict=True) if fine]
        failed = int((~said.answered).sum())
        reasons = said.details["error"].dropna().tolist()
        why = f" ({reasons[0]})" if reasons else ""
        if not labels:
            raise JobFailedError(f"The teacher failed for all {failed:,} texts{why}.")
        if failed:
            warn(f"The teacher gave no valid answer for {failed:,} of {len(said.labels):,} texts{why}.")
        if len(set(labels)) < 2:
            raise InputError(
                f"The teacher gave all {len(labels):,} texts the label {labels[0]!r}: nothing can be learned.",
                "Pass more texts, or raise n_samples.",
            )
        self._train(student, texts, labels)

    def _train(self, student: Any, texts: list[str], labels: list[Any]) -> None:
        self.student_ = student.fit(texts, np.asarray(labels))
        self.classes_ = np.asarray(self.student_.classes_)
        self.taught_, self.n_taught_ = TaughtRows.of(texts, labels), len(texts)
