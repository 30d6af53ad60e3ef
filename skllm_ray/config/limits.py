"""Settings: quotas, timeouts, prices, the cache of answers and the progress bar."""

from __future__ import annotations

import os
from typing import get_args

from skllm_ray.config.checks import _at_least, _flag, _number, _one_of, _path, _seconds
from skllm_ray.config.process_state import bare, current, optional, read, write, write_for
from skllm_ray.config.secret import _text
from skllm_ray.config.values import Confidence, Price, RateLimit, Timeouts


class LimitSettings:
    """The part of `SKLLMConfig` that bounds what calls may take: quotas, timeouts, prices and the cache of answers."""

    @staticmethod
    def set_rate_limit(
        model: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrency: int | None = None,
    ) -> None:
        """Declare the quota of an API model.

        Parameters
        ----------
        model : str
            The model as it is passed to an estimator, with its namespace.
        requests_per_minute, tokens_per_minute, max_concurrency : int or None, default=None
            The limits, each at least 1; None means not limited.
        """
        limits = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_concurrency": max_concurrency,
        }
        checked = {name: None if value is None else _at_least(name, value, 1) for name, value in limits.items()}
        name = bare(_text("model", model))
        write_for("rate_limits", name, RateLimit(**checked))

    @staticmethod
    def get_rate_limit(model: str) -> RateLimit | None:
        """Return the declared quota of `model`, or None."""
        return dict(current().rate_limits).get(bare(model))

    @staticmethod
    def set_timeouts(*, connect_s: float = 10.0, request_s: float = 120.0, row_s: float = 600.0) -> None:
        """Set how long API models may take. What is not passed returns to its default.

        A call also ends, with an error that says so, when no row at all was served for `row_s`, or for 30 s where the
        server was never reached.

        Parameters
        ----------
        connect_s : float, default=10
            Seconds to connect.
        request_s : float, default=120
            Seconds for one try of a row, once it is connected. A slow local model may need more.
        row_s : float, default=600
            Seconds for a row with all its tries and the pauses between them, from when the limits first let it through.

        Raises
        ------
        ConfigurationError
            If one is not a number above 0.
        """
        given = {"connect_s": connect_s, "request_s": request_s, "row_s": row_s}
        write("timeouts", Timeouts(**{name: _seconds(name, value) for name, value in given.items()}))

    @staticmethod
    def get_timeouts() -> Timeouts:
        """Return how long API models may take."""
        return current().timeouts or Timeouts()

    @staticmethod
    def set_price(
        model: str,
        *,
        input_per_million: float,
        output_per_million: float = 0.0,
        cached_input_per_million: float | None = None,
        as_of: str = "",
    ) -> None:
        """Set what an API model costs; it wins over the library's own table.

        Parameters
        ----------
        model : str
            The model as it is passed to an estimator, with its namespace.
        input_per_million, output_per_million : float
            US dollars per million tokens.
        cached_input_per_million : float or None, default=None
            For input that the provider had cached; None is `input_per_million`.
        as_of : str, default=""
            The day of the price, for your own records.
        """
        cached = cached_input_per_million
        price = Price(
            _number("input_per_million", input_per_million),
            _number("output_per_million", output_per_million),
            None if cached is None else _number("cached_input_per_million", cached),
            as_of,
        )
        write_for("prices", bare(_text("model", model)), price)

    @staticmethod
    def get_price(model: str) -> Price | None:
        """Return the price that was set for `model`, or None."""
        return dict(current().prices).get(bare(model))

    @staticmethod
    def set_reply_cache(path: str | os.PathLike[str] | None, max_bytes: int = 1_000_000_000) -> None:
        """Set the file in which the answers of API models are kept, so that none is paid for twice.

        Parameters
        ----------
        path : str or path-like or None
            A file that every worker can write: on one machine any, on a cluster one of a shared file system, or each
            node keeps its own. None, the default, keeps nothing. The file holds replies, vectors and hashes, never
            prompts or keys.
        max_bytes : int, default=1_000_000_000
            The largest size of the file, at least 100,000; where it is reached, the oldest answers are removed.
        """
        write("reply_cache", None if path is None else _path("path", path))
        write("reply_cache_max_bytes", _at_least("max_bytes", max_bytes, 100_000))

    @staticmethod
    def get_reply_cache() -> str | None:
        """Return the file in which answers are kept, or None."""
        path = optional("reply_cache")
        return None if path is None else _path("reply_cache", path)

    @staticmethod
    def get_reply_cache_max_bytes() -> int:
        """Return the largest size of the file in which answers are kept."""
        value = read("reply_cache_max_bytes")
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        return _at_least("reply_cache_max_bytes", number, 100_000)

    @staticmethod
    def set_confidence(mode: Confidence) -> None:
        """Set whether calls that show probabilities ask API models for them.

        These are ``predict_details``, Datasets with ``details=True`` and batch jobs. `predict` asks for none, and
        ``predict_proba`` always does. A server that gives none is asked without, and ``probability`` is NaN.

        Parameters
        ----------
        mode : {"auto", "written", "off"}
            "auto", the default, scores every label exactly where a server can, and otherwise reads the
            log-probabilities of the answer that it writes; "written" does only the latter; "off" asks for none.
            Log-probabilities cost no tokens, and about 0.1 kB for each token of an answer, some 2 kB for a label's.
            Of GGUF models, "off" spares those of fields, and of labels where they take time: among many labels the
            best is searched for, which is several times as fast, and ``probability`` and ``label_mass`` are NaN.

        Examples
        --------
        >>> from skllm_ray.config import SKLLMConfig
        >>> SKLLMConfig.set_confidence("off")
        >>> SKLLMConfig.get_confidence()
        'off'
        >>> SKLLMConfig.reset()
        """
        write("confidence", _one_of("confidence", mode, get_args(Confidence)))

    @staticmethod
    def get_confidence() -> Confidence:
        """Return whether calls that show probabilities ask API models for them."""
        found: Confidence = _one_of("confidence", read("confidence"), get_args(Confidence))
        return found

    @staticmethod
    def set_show_progress(show: bool) -> None:
        """Set whether a progress bar appears, in terminals and notebooks, on calls that take more than 2 s."""
        write("show_progress", _flag("show_progress", show))

    @staticmethod
    def get_show_progress() -> bool:
        """Return whether a progress bar may appear."""
        return _flag("show_progress", read("show_progress"))
