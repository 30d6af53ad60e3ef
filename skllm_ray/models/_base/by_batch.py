"""A call that is delivered by provider batches: a batch job in a folder of this user, which the next call takes up."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.errors import ConfigurationError, JobFailedError, PartialResultError
from skllm_ray.models._base import results
from skllm_ray.models._base.inputs import Texts, as_texts, refuse_missing
from skllm_ray.models._base.reading import OnError

if TYPE_CHECKING:
    from skllm_ray.models._base.estimator import LLMEstimator

FOLDER: Final = "~/.skllm/batches"
"""Where calls are kept while their batches are at the provider."""
_KEY_LENGTH: Final = 32


def check_delivery(delivery: str) -> bool:
    """Return whether a call is delivered by batches.

    Raises
    ------
    ConfigurationError
        If there is no such delivery.
    """
    if delivery not in {"direct", "batch"}:
        raise ConfigurationError(f"delivery must be 'direct' or 'batch'; got {delivery!r}.")
    return delivery == "batch"


def details_by_batch(estimator: LLMEstimator, X: Any, mode: OnError) -> pd.DataFrame:
    """Return what ``predict_details`` does, delivered by batches. Ctrl-C leaves them running; the same call goes on.

    Raises
    ------
    JobFailedError
        If the job cannot go on now.
    """
    batch = import_module("skllm_ray.batch")  # jobs stand above estimators, and know them
    texts = as_texts(X)
    made: Any = copy.copy(estimator)
    made.on_error = "default" if mode == "default" else "coerce"
    folder = Path(FOLDER).expanduser() / _key(made, texts)
    source, output = folder / "in.parquet", folder / "out"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = source.with_suffix(".draft")
        pq.write_table(pa.table({"text": pa.array(texts.values, pa.string())}), draft)
        draft.replace(source)
    result = batch.run(made, str(source), str(output), keep_columns=[], delivery="batch")
    if not result.complete:
        told = result.stopped or "; ".join(result.unreadable.values())
        raise JobFailedError(f"The call is not done: {told}.", "The same call goes on where it was.")
    table = pa.concat_tables(pq.read_table(part) for part in sorted(output.glob("part-*.parquet")))
    found = _details(estimator, table, texts)
    shutil.rmtree(folder)
    return found


def predictions_by_batch(estimator: LLMEstimator, X: Any, mode: OnError) -> list[Any]:
    """Return what the user sees of each row, delivered by batches.

    Raises
    ------
    PartialResultError
        With "raise", if any row failed.
    """
    if mode == "raise":
        refuse_missing(as_texts(X))
    found = details_by_batch(estimator, X, mode)
    failed = found[found["error_kind"].notna() & (found["error_kind"] != "invalid_answer")]
    if mode == "raise" and len(failed):
        first = failed.iloc[0]
        raise PartialResultError(
            f"{len(failed):,} of {len(found):,} rows failed with {estimator.model}; the first: {first['error_kind']}: "
            f"{first['error']}",
            "The finished rows are in this error's .details; on_error='default' or 'coerce' returns instead.",
            found,
        )
    return list(found["prediction"])


def _details(estimator: LLMEstimator, table: pa.Table, texts: Texts) -> pd.DataFrame:
    columns = [table.column(name).to_pylist() for name in estimator._reading().types]
    values = columns[0] if len(columns) == 1 else [list(one) for one in zip(*columns, strict=True)]
    found = results.details_of([values, *(table.column(name).to_pylist() for name in results.DETAIL_COLUMNS[1:])])
    found.index = texts.index
    return found


def _key(estimator: LLMEstimator, texts: Texts) -> str:
    """Return what tells this call from others: what is asked, of which model, about which texts."""
    question_hash = import_module("skllm_ray.batch.output.manifest").question_hash
    plan = estimator._checked_plan()
    asked = plan[-1].spec.identity, question_hash(plan), estimator.get_params(), texts.values
    told = json.dumps([type(estimator).__name__, *asked], default=str)
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:_KEY_LENGTH]
