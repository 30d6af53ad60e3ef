"""What a part tells of its unit in its own metadata, and how it is read; `batch/job/worker.py` writes parts."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.batch.input.files import Unit
from skllm_ray.batch.output.progress import SPENT, Progress
from skllm_ray.batch.storage import Folder

SYSTEM: Final = "_skllm_ray"
"""The folder in the output for what is not a part; readers of Parquet folders pass over it."""
JOURNAL: Final = f"{SYSTEM}/journal"
PRIOR: Final = "prior"
"""The key of what stands for a unit where the labels' prior is asked for."""
PRIOR_PART: Final = f"{SYSTEM}/prior.parquet"
"""Where the labels' prior stands, with what it cost."""
CERTIFICATE: Final = "certificate"
"""The key of what stands for a unit where the sample of a cascade is asked about."""
CERTIFICATE_PART: Final = f"{SYSTEM}/certificate.parquet"
"""Where its answers stand, with what they cost."""
BESIDE: Final = {PRIOR: PRIOR_PART, CERTIFICATE: CERTIFICATE_PART}
"""What stands beside the parts, and costs something as they do."""
PART_META: Final = b"skllm_ray"
"""Where a part tells of itself."""


@dataclass(frozen=True, slots=True)
class UnitSummary:
    """What became of a unit."""

    unit: str
    file: str
    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    reused: int = 0
    duplicates: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    """What is known to be spent on it, by all attempts and retries."""
    unpriced: int = 0
    """Replies of unknown price."""
    unknown_usd: float = 0.0
    """The most that was perhaps paid for requests that have no answer."""
    attempts: tuple[str, ...] = ()
    """The attempts in its journal whose costs are told here; what they wrote there may be forgotten."""
    started: float = 0.0
    """Seconds since 1970-01-01 UTC."""
    seconds: float = 0.0
    node: str = ""
    model: str = ""
    size: int = 0
    """The part's, in bytes; 0 where it is not known."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the first row of each kind of failure failed."""
    label_mass: float | None = None
    """The median of its rows' label masses; None where none is known."""

    label: str = ""
    """The label that most of its rows have, where a row has one."""
    label_rows: int = 0
    """Its rows with it."""

    stages: dict[str, int] = field(default_factory=dict)
    """Of a cascade, its rows by what answered them."""
    audit_differs: int = 0
    """Audited rows whose kept label would have differed."""
    audit_failed: int = 0
    """Audited rows to which the strong model gave no valid answer."""

    def __post_init__(self) -> None:
        """Share what many have alike: a job may have a million of them."""
        for name in ("file", "node", "model", "label"):
            object.__setattr__(self, name, sys.intern(getattr(self, name)))
        for name in ("errors", "reasons", "stages"):
            object.__setattr__(self, name, getattr(self, name) or _NOTHING)

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def progress(self) -> Progress:
        """The same as counts that can be added up."""
        found = Progress(errors=Counter(self.errors))
        for name in _COUNTED:
            setattr(found, name, getattr(self, name))
        return found

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> UnitSummary:
        """Return the summary in plain data that may hold other things, too.

        Raises
        ------
        KeyError
            If it holds no summary.
        """
        held = {name: told[name] for name in cls.__dataclass_fields__ if name not in _LATER or name in told}
        found = cls(**{**held, "attempts": tuple(held["attempts"])})
        numbers = [getattr(found, name) for name in (*_COUNTED, "started", "seconds", "size")]
        numbers += [*found.errors.values(), *found.stages.values(), found.audit_differs, found.audit_failed]
        numbers.append(found.label_rows)
        if not all(is_amount(one) for one in numbers) or not isinstance(found.unit, str):
            raise KeyError("a count")
        return found


_NOTHING: Final[dict[str, Any]] = {}
_LATER: Final = frozenset({"reasons", "label_mass", "label", "label_rows", "stages", "audit_differs", "audit_failed"})
"""What the first release's summaries lack."""
_COUNTED: Final = ("rows", "reused", "duplicates", *SPENT)


def is_amount(value: object) -> bool:
    """Return whether a value from a file can be a count or an amount of money."""
    return type(value) in {int, float} and 0 <= value < math.inf  # type: ignore[operator]


def table_bytes(table: pa.Table) -> pa.Buffer:
    """Return a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def summary_of(output: Folder, part_name: str) -> UnitSummary | None:
    """Return the summary in a part's own metadata; None where there is no such part, or it is damaged.

    Raises
    ------
    OSError
        If a store gives no answer: a part that is merely out of reach must not be done, and paid for, again.
    """
    try:
        with _opened(output, part_name) as source:
            return _summary_in(pq.read_schema(source), source.size())
    except FileNotFoundError:
        return None
    except _UnreachableError as error:
        raise error.cause from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


class _UnreachableError(Exception):
    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def _opened(output: Folder, part_name: str) -> pa.NativeFile:
    """Return a part: from a store, as a whole, since errors of the network and of the format look alike later."""
    if output.is_local:
        return output.filesystem.open_input_file(output.at(part_name))
    try:
        return pa.BufferReader(output.read(part_name))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _UnreachableError(error) from None


def _summary_in(schema: pa.Schema, size: int) -> UnitSummary:
    """Return the summary that a part holds; its size alone it cannot know."""
    return UnitSummary.load({**json.loads((schema.metadata or {})[PART_META]), "size": size})


@dataclass(frozen=True)
class OldPart:
    """A part whose failed rows are asked again."""

    table: pa.Table
    summary: UnitSummary

    @classmethod
    def read(cls, output: Folder, unit: Unit) -> OldPart:
        """Return the part of a unit.

        Raises
        ------
        OSError, KeyError, pyarrow.ArrowException
            If it cannot be read.
        """
        with output.filesystem.open_input_file(output.at(unit.part_name)) as source:
            table = pq.read_table(source)
            return cls(table.replace_schema_metadata(None), _summary_in(table.schema, source.size()))


def add_up(summaries: Iterable[UnitSummary]) -> Progress:
    """Return what units did together."""
    total = Progress()
    for one in summaries:
        total.add(one.progress)
    return total
