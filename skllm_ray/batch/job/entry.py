"""A job, from what a person gives: checked, and run to its end."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from skllm_ray.batch.input.text_template import check_template
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.job.options import BatchEstimator, Delivered, JobOptions, JobRequest, KeepReplies
from skllm_ray.batch.job.progress_display import Screen, open_screen
from skllm_ray.batch.job.result import JobResult
from skllm_ray.batch.storage import StorageOptions, absolute, base_of, is_in_input, open_folder
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError


def run(
    estimator: BatchEstimator,
    input: str | Sequence[str],  # noqa: A002  the word for it
    output: str,
    *,
    text_column: str = "text",
    text_template: str | None = None,
    keep_columns: Sequence[str] | None = None,
    filename_column: str | None = None,
    output_prefix: str = "",
    keep_replies: KeepReplies = "none",
    limit: int | None = None,
    retry_errors: bool = False,
    budget_usd: float | None = None,
    input_price: float | None = None,
    output_price: float | None = None,
    max_output_tokens: int | None = None,
    workers: int | None = None,
    unit_rows: int | None = None,
    priority: int = 0,
    wait_for_server_s: float = 600.0,
    delivery: Delivered = "direct",
    deadline: str | None = None,
    batch_price_share: float | None = None,
    keep_remote_files: bool = False,
    keep_going: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    screen: Screen | None = None,
) -> JobResult:
    r"""Ask a fitted estimator about every row of some files, and write Parquet parts.

    Whatever ends a run, the same call goes on where it was: rows with a part are not asked again, and of the others
    only those whose answers were not written down yet. Rows that failed are in the parts, with their error.

    Parameters
    ----------
    estimator : estimator
        Any fitted estimator of this library. Its ``on_error="default"`` puts the default in place of failed rows;
        otherwise they are null.
    input : str or sequence of str
        Files, folders or patterns such as ``"s3://bucket/in/*.parquet"``, of Parquet, CSV or JSON lines. CSV has no
        types: its columns come out as texts.
    output : str
        A folder for the parts. Each has the input's columns, the results, ``probability``, ``valid``, ``error_kind``,
        ``error``, ``attempts``, ``prompt_tokens``, ``completion_tokens``, ``cost_usd``, ``model`` and ``label_mass``.
    text_column : str, default="text"
        The column with the texts.
    text_template : str or None, default=None
        Makes the texts of several columns, such as ``"{title}\n{body}"``; then `text_column` is not used.
    keep_columns : sequence of str or None, default=None
        The input's columns that the parts keep; None keeps all.
    filename_column : str or None, default=None
        The name of a column that tells each row's file, with its whole path; the parts have it in any case.
    output_prefix : str, default=""
        Put before the names of the new columns.
    keep_replies : {"none", "errors", "all"}, default="none"
        Which raw answers are kept in a column ``raw_reply``: of rows without a valid result, or of all.
    limit : int or None, default=None
        Rows after which to stop; the same call without it does the others.
    retry_errors : bool, default=False
        Whether to ask the failed rows of finished parts again.
    budget_usd : float or None, default=None
        The most that the output may cost in all, earlier runs included. What each request may cost at most is set
        aside before it is sent, and what came of requests without an answer counts as spent.
    input_price, output_price : float or None, default=None
        US dollars per million tokens, where the model's price is not known or another one holds. Of several models,
        the price of the one that the estimator names; that of the others is set by ``SKLLMConfig.set_price``.
    max_output_tokens : int or None, default=None
        The largest answer, in tokens, where the task does not say; with a budget 1,024.
    workers : int or None, default=None
        Units at once; None lets the cluster decide.
    unit_rows : int or None, default=None
        Rows in a part, at most; None takes 256 to 8,192 by the size of the input. Fixed by the first run.
    priority : int, default=0
        Among jobs that share the replicas of a local model, the higher is served first; a call that has waited for a
        minute is served all the same. Requests to an API have no priority.
    wait_for_server_s : float, default=600
        How long a server that gives no answer is waited for, in seconds, before the run ends.
    delivery : {"direct", "batch"}, default="direct"
        How the model is asked: row by row, or by the provider's batches, which cost half and take up to a day. Batches
        go on when this process ends; the same call takes them up again. See the page on provider batches.
    deadline : str or None, default=None
        By when all rows are to be answered, such as ``"8h"``, counted from the first run on the output. When there is
        just enough time left to ask the open rows directly, live batches are cancelled, what they have answered is
        collected, and the rest is asked directly. ``"0"`` does that at once. None waits for all batches.
    batch_price_share : float or None, default=None
        What a batch costs, as a share of the direct price; None is 0.5 at OpenAI, Azure OpenAI and Vertex AI, and 1
        at other servers, whose discount nobody knows.
    keep_remote_files : bool, default=False
        Whether the batches' files stay at the provider when their answers are home.
    keep_going : bool, default=False
        Whether to go on though nearly all rows fail. By default a run ends when all of its first 200 rows with a text
        fail, or 95% of any 5,000, and writes down no row as failed where the server has answered nobody.
    storage_options : mapping or None, default=None
        What opens the filesystem: the arguments of ``pyarrow.fs.S3FileSystem`` or ``GcsFileSystem`` for ``s3://`` and
        ``gs://``, those of fsspec's filesystem otherwise.
    screen : Screen or None, default=None
        Where progress is shown; None shows it in a terminal.

    Returns
    -------
    JobResult
        How the job stands; ``complete`` tells whether all that was wanted is done, ``mostly_failed`` whether most of
        it is errors.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        After Ctrl-C, or after SIGTERM, with the code 143: nothing more is sent, what is in flight is waited for up to
        15 seconds and kept. A second signal ends it at once.
    ConfigurationError
        If a parameter cannot work, or a budget is asked for a model of unknown price.
    InputError
        If the input, or a column of it, is not there.
    OutputMismatchError
        If the output belongs to a job with another input, question or model.
    OutputInUseError
        If another run writes to it.

    Examples
    --------
    >>> import tempfile, pandas as pd, skllm_ray
    >>> from skllm_ray.classification import ZeroShotGPTClassifier
    >>> skllm_ray.init(local_mode=True)
    >>> folder = tempfile.mkdtemp()
    >>> texts = ["I love it!", "It broke after two days and nobody answers."]
    >>> pd.DataFrame({"text": texts}).to_parquet(f"{folder}/in.parquet")
    >>> clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    >>> run(clf, f"{folder}/in.parquet", f"{folder}/out").complete
    True
    >>> pd.read_parquet(f"{folder}/out")["prediction"].tolist()
    ['positive', 'negative']
    >>> skllm_ray.shutdown()
    """
    given = dict(locals())
    options = {name: given[name] for name in JobOptions.model_fields}
    result = job_for(estimator, input, output, **options).run(screen or open_screen(SKLLMConfig.get_show_progress()))
    if result.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if result.signal:
        raise SystemExit(128 + result.signal)
    return result


def job_for(
    estimator: BatchEstimator,
    input: str | Sequence[str],  # noqa: A002  as above
    output: str,
    **options: Any,
) -> Job:
    """Return the job that :func:`run` runs, its parameters checked."""
    if not hasattr(estimator, "_reading"):  # it may be an object of any class: `isinstance` would need `models`
        raise ConfigurationError(
            f"estimator must be a fitted estimator of skllm_ray; got {type(estimator).__name__}.",
            "Such as ZeroShotGPTClassifier(model=…).fit(None, labels).",
        )
    try:
        estimator._task()
    except AttributeError:
        raise ConfigurationError(f"estimator: the {type(estimator).__name__} is not fitted.", "Call fit.") from None
    inputs = [input] if isinstance(input, str) else list(input)
    if not inputs or not all(isinstance(one, str) and one for one in inputs):
        raise ConfigurationError(f"input must be a path or paths; got {input!r}.", "Such as 'reviews/*.parquet'.")
    if not isinstance(output, str) or not output:
        raise ConfigurationError(f"output must be a folder's path; got {output!r}.")
    checked = _checked(options)
    storage = StorageOptions.of(checked.storage_options)
    inputs, output = [absolute(uri) for uri in inputs], absolute(output)
    _check_places(inputs, output, storage)
    return Job(JobRequest(estimator, tuple(inputs), output, checked, storage))


def _check_places(inputs: Sequence[str], output: str, storage: StorageOptions) -> None:
    """Refuse inputs that one filesystem does not hold, and parts that a later run would take for input."""
    secrets = storage.secrets()
    first, *others = (open_folder(base_of(uri), storage, secrets).filesystem for uri in inputs)
    for uri, other in zip(inputs[1:], others, strict=True):
        if other != first:
            raise ConfigurationError(
                f"input: {inputs[0]!r} and {uri!r} are on different filesystems.", "Run a job for each of them."
            )
    for uri in inputs:
        if is_in_input(open_folder(output, storage, secrets), uri, storage, secrets):
            raise ConfigurationError(
                f"output={output!r} lies in the input {uri!r}, so that its parts would be input of the next run.",
                "Give a folder beside it, or a pattern that does not match the parts.",
            )


def _checked(given: Mapping[str, Any]) -> JobOptions:
    kept, opens = given.get("keep_columns"), given.get("storage_options")
    options = JobOptions.of(
        {
            **given,
            "keep_columns": list(kept) if isinstance(kept, Sequence) and not isinstance(kept, str) else kept,
            "storage_options": dict(opens) if isinstance(opens, Mapping) else opens,
        }
    )
    name = options.filename_column
    if name is not None and not name.strip():
        raise ConfigurationError(f"filename_column must be a column's name; got {name!r}.", "Such as 'file'.")
    if options.text_template is not None:
        check_template(options.text_template)
    return options
