"""The error tree: every exception that skllm_ray raises on purpose.

::

    SkllmRayError
    ├── ConfigurationError (ValueError)       a setting or parameter that cannot work
    │   ├── UnknownModelError                 the model, or its namespace, does not exist
    │   └── MissingKeyError                   a credential is needed and none was found
    ├── InputError (ValueError)               the texts or labels that were passed
    ├── MissingExtraError (ImportError)       an optional dependency is not installed
    ├── NotSupportedError                     this backend cannot do that
    ├── ModelLoadError                        a model file is missing, damaged or does not fit
    ├── ClusterError                          Ray cannot do what the call needs
    │   ├── PlacementError                    no room for the model actors
    │   └── WorkerMismatchError               the workers' packages differ from the driver's
    ├── JobFailedError                        the backend refused for a reason that every row shares
    ├── OutputMismatchError (ValueError)      a batch job's output belongs to another job
    ├── OutputInUseError                      another run writes to the same output
    ├── AmbiguousSubmission                   a tuning job was sent, and nobody knows whether it was taken
    └── PartialResultError                    some rows failed; ``.details`` holds every row

    SkllmRayWarning (UserWarning)             the call goes on, but not quite as asked

Every class says whether trying again unchanged can help (``retryable``), and every instance may carry a ``hint``: what
to do. What happens to a single row is data, not an exception: see :class:`skllm_ray.tasks.RowError`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar, Final

from skllm_ray.plain_text import printable, without_passwords

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AmbiguousSubmission",
    "ClusterError",
    "ConfigurationError",
    "InputError",
    "JobFailedError",
    "MissingExtraError",
    "MissingKeyError",
    "ModelLoadError",
    "NotSupportedError",
    "OutputInUseError",
    "OutputMismatchError",
    "PartialResultError",
    "PlacementError",
    "SkllmRayError",
    "SkllmRayWarning",
    "UnknownModelError",
    "WorkerMismatchError",
]


class SkllmRayError(Exception):
    """Base of all errors of this library.

    Parameters
    ----------
    message : str
        What happened: the parameter, what was given and what would work.
    hint : str, default=""
        What to do about it; appended to the message.
    """

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed when it is tried again unchanged."""

    def __init__(self, message: str, hint: str = "") -> None:
        message, hint = without_passwords(message), without_passwords(hint)
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return printable(f"{self.message} {self.hint}".strip())  # a server or a file may have said some of it


class ConfigurationError(SkllmRayError, ValueError):
    """A setting or a constructor parameter cannot work."""


class UnknownModelError(ConfigurationError):
    """The model, or the namespace before ``::``, does not exist."""


class MissingKeyError(ConfigurationError):
    """A credential is needed and none was found."""


class InputError(SkllmRayError, ValueError):
    """The texts or labels that were passed cannot be used."""


class MissingExtraError(SkllmRayError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def for_extra(cls, package: str, extra: str) -> MissingExtraError:
        """Return the error for a missing `package` of our `extra`."""
        return cls(f"{package} is not installed.", f"Install it with: pip install 'skllm-ray[{extra}]'")


class NotSupportedError(SkllmRayError):
    """The backend cannot do what was asked of it."""


class ModelLoadError(SkllmRayError):
    """A model file is missing, damaged, or does not fit the machine."""


class ClusterError(SkllmRayError):
    """Ray cannot do what the call needs."""


class PlacementError(ClusterError):
    """The cluster has no room for the model actors that were asked for."""

    retryable = True


class WorkerMismatchError(ClusterError):
    """The workers' Python or packages differ from the driver's."""


class JobFailedError(SkllmRayError):
    """The backend refused for a reason that every row shares, such as a wrong key."""


class OutputMismatchError(SkllmRayError, ValueError):
    """A batch job's output belongs to a job with another input, question or model."""


class OutputInUseError(SkllmRayError):
    """Another run writes to the same output."""

    retryable = True


class AmbiguousSubmission(SkllmRayError):  # noqa: N818  it is a state of the job as much as an error
    """A tuning job or a batch was sent, and nobody can say whether the service took it. Nothing is sent again.

    Attributes
    ----------
    key : str
        The job's content key, which it carries at the service if it exists there.
    """

    def __init__(self, message: str, hint: str = "", key: str = "") -> None:
        super().__init__(message, hint)
        self.args = (self.message, self.hint, key)
        self.key = key


class PartialResultError(SkllmRayError):
    """Some rows failed after all rows were tried.

    Attributes
    ----------
    details : pandas.DataFrame of shape (n_samples, n_columns)
        What ``predict_details`` would have returned: the finished rows and the errors of the others.
    """

    retryable = True

    def __init__(self, message: str, hint: str = "", details: pd.DataFrame | None = None) -> None:
        super().__init__(message, hint)
        self.args = (self.message, self.hint, details)
        self.details = details


class SkllmRayWarning(UserWarning):
    """The call goes on, but not quite as asked."""


_INNER: Final = {"skllm_ray", "sklearn", "joblib"}


_collected: ContextVar[list[str] | None] = ContextVar("skllm_ray_warnings", default=None)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Keep what this thread warns of meanwhile, for the thread that the user called."""
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)


def warn(message: str) -> None:
    """Warn with `SkllmRayWarning`, attributed to the user's own line, however deep in the library the reason lies."""
    messages = _collected.get()
    if messages is not None:
        messages.append(message)
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(message), SkllmRayWarning, stacklevel=level)
