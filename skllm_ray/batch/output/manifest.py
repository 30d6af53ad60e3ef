"""What fixes a job: its input, its question and its model, written down before the first row is asked."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

import skllm_ray
from skllm_ray.batch.input.files import InputFile
from skllm_ray.batch.storage import Folder
from skllm_ray.config import Secret
from skllm_ray.errors import OutputMismatchError
from skllm_ray.execution.plan import Plan
from skllm_ray.tasks.base import FollowUpTask

MANIFEST: Final = "manifest.json"
"""Its name."""
_FORMAT: Final = 1
_PRIVATE: Final = frozenset({"key", "org", "verbose"})
_PROBE: Final = "⟦probe⟧"
_SHOWN: Final = 120
_PLAIN_WORD: Final = re.compile(r"[a-z]{0,12}(_[a-z]{1,12}){0,3}")
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{12}")
_OPTION: Final = re.compile(r"([\w.-]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Manifest:
    """What fixes a job. A job with another one does not write to the same output."""

    input: tuple[str, ...]
    text_column: str | None
    text_template: str | None
    keep_columns: tuple[str, ...]
    output_prefix: str
    keep_replies: str
    task: str
    """The estimator's class."""
    model: str
    identity: str
    """The backend's endpoint, model and request parameters; no credential."""
    params: str
    """The estimator's parameters, as JSON."""
    question: str
    """A hash of the task with all that was fitted."""
    prompt: str
    """The prompt for a probe text."""
    labels: tuple[str, ...] | None
    input_schema: str
    """The input's columns, in Arrow's own form, base64."""
    schema: str
    """The parts' columns, likewise."""
    prediction_columns: tuple[str, ...]
    unit_rows: int
    files: tuple[InputFile, ...]
    max_output_tokens: int | None = None
    """The largest answer, where it was given."""
    filename_column: str | None = None
    """The column that names a row's file, if any."""
    cuts: tuple[tuple[int, int], ...] = ()
    """Where runs were told to stop: (file, row) pairs."""
    template: str | None = None
    """The prompt template that is in use, where the task has one."""
    version: str = skllm_ray.__version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def rows_total(self) -> int:
        """Rows in the input."""
        return sum(file.n_rows for file in self.files)

    @property
    def result_columns(self) -> list[str]:
        """The parts' columns that are not the input's: those of the version that began the output."""
        return list(self.arrow_schema().names[len(self.keep_columns) :])

    def arrow_schema(self) -> pa.Schema:
        """Return the parts' schema."""
        return read_schema(self.schema)

    def save(self, folder: Folder) -> None:
        """Write it down."""
        told = {**asdict(self), "files": [file.dump() for file in self.files], "format": _FORMAT}
        try:
            text = json.dumps(told, ensure_ascii=False, indent=1).encode()
        except UnicodeEncodeError:  # half of a character, such as in a prompt of the user's
            text = json.dumps(told, indent=1).encode()
        folder.write(MANIFEST, text)

    def check_same(self, other: Manifest) -> None:
        """Raise unless `other` asks the same question of the same model and writes the same columns.

        Raises
        ------
        OutputMismatchError
            Naming what differs.
        """
        names = ["task", "params", "labels", "model", "identity", "text_column", "text_template"]
        names += ["keep_columns", "output_prefix", "keep_replies", "max_output_tokens", "unit_rows", "filename_column"]
        if self.version == other.version:
            names += ["question", "prompt"]
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                what = name
                if name == "params":
                    parameter = _other_parameter(mine, theirs)
                    if parameter is None:
                        continue
                    what, mine, theirs = parameter
                before, now = _shown(mine, theirs)
                raise OutputMismatchError(
                    f"The output belongs to a job with another {what}: {before}; now: {now}.",
                    "Write to another output, or run with the old settings; the finished parts stay as they are.",
                )


def load_manifest(folder: Folder) -> Manifest | None:
    """Return the manifest of an output, or None where there is none.

    Raises
    ------
    OutputMismatchError
        If it is of a later version of this library, or damaged.
    """
    try:
        told = json.loads(folder.read(MANIFEST))
        if told.pop("format", None) != _FORMAT:
            raise OutputMismatchError("The output was begun by another version of skllm_ray.", "Use that version.")
        told["files"] = tuple(InputFile.load(file) for file in told["files"])
        for name in ("input", "keep_columns", "prediction_columns", "cuts", "labels"):
            told[name] = None if told[name] is None else tuple(told[name])
        told["cuts"] = tuple((number, row) for number, row in told["cuts"])
        told["params"] = _veiled_params(told["params"])  # the first release wrote request options out
        told["identity"] = veiled_identity(told["identity"])
        return Manifest(**told)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputMismatchError(
            f"{folder.at(MANIFEST)}, which tells what job the output holds, is damaged ({type(error).__name__}).",
            "Bring it back from a copy, or write to another output; the finished parts stay as they are.",
        ) from None


def schema_text(schema: pa.Schema) -> str:
    """Return a schema in the form that a manifest holds."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def read_schema(text: str) -> pa.Schema:
    """Return the schema in what `schema_text` made."""
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))


def params_text(estimator: Any) -> str:
    """Return an estimator's parameters as JSON, credentials left out."""
    params = {name: value for name, value in estimator.get_params(deep=False).items() if name not in _PRIVATE}
    return _veiled_params(json.dumps(params, sort_keys=True, ensure_ascii=False, default=_plain))


def veiled_identity(text: str) -> str:
    """Return a backend's identity, as JSON, with the values of request options as `veiled` shows them."""
    told = json.loads(text)
    return json.dumps([_veiled_option(one) for one in told] if isinstance(told, list) else told)


def veiled(value: Any) -> Any:
    """Return a request option's value with each text in it that is no plain word replaced by its fingerprint.

    Some hold a credential under an unexpected name, and all who may read the output may read the manifest.

    Examples
    --------
    >>> veiled({"effort": "low", "top_p": 0.5, "user": "jane-0815"})
    {'effort': 'low', 'top_p': 0.5, 'user': 'sha256:57dee7a71e08'}
    """
    if isinstance(value, Mapping):
        return {name: veiled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [veiled(inner) for inner in value]
    if not isinstance(value, str) or _PLAIN_WORD.fullmatch(value) or _FINGERPRINT.fullmatch(value):
        return value
    return f"sha256:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _veiled_params(text: str) -> str:
    params = json.loads(text)
    if not params.get("request_options"):
        return text
    params["request_options"] = veiled(params["request_options"])
    return json.dumps(params, sort_keys=True, ensure_ascii=False)


def _veiled_option(told: Any) -> Any:
    found = _OPTION.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        return told
    try:
        value = json.loads(found[2])
    except ValueError:
        return told
    return f"{found[1]}={json.dumps(veiled(value), sort_keys=True)}"


def question_hash(plan: Plan) -> str:
    """Return a hash of what is asked with all its data, the same in every process.

    Of the last step it holds the task alone, whose model's identity the manifest has; of those before, both.
    """
    digest = hashlib.sha256()
    before = [[step.task, step.spec.identity, *step.takes] for step in plan[:-1]]
    for piece in _pieces([*before, *plan[-1].takes]) if len(plan) > 1 else ():
        digest.update(piece.encode("utf-8", "replace") + b"\0")
    for piece in _pieces(plan[-1].task):
        digest.update(piece.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()[:32]


def probe_prompt(plan: Plan) -> str:
    """Return what the last step asks about a probe text; empty where that depends on answers."""
    task = plan[-1].task
    if isinstance(task, FollowUpTask):
        return ""
    request = task.render([_PROBE])[0]
    return "\n\n".join(message["content"] for message in request.messages)


def with_template(plan: Plan, template: str | None) -> Plan:
    """Return `plan` with the prompt template of the manifest: a later version's default may be another."""
    if template is None or template_of(plan) in {None, template}:
        return plan
    task: Any = plan[-1].task
    return (*plan[:-1], replace(plan[-1], task=replace(task, template=template)))


def template_of(plan: Plan) -> str | None:
    """Return the last step's prompt template; None where it has none."""
    found: str | None = getattr(plan[-1].task, "template", None)  # tasks with a fixed prompt lack the field
    return found


def _pieces(value: Any) -> Sequence[str]:
    """Return a value as texts that depend on nothing but its content."""
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: getattr(value, one.name) for one in fields(value) if _is_asked(one, value)}
        return [type(value).__name__, *_pieces(held)]
    if isinstance(value, Mapping):
        return [piece for name in sorted(value, key=str) for piece in (str(name), *_pieces(value[name]))]
    if isinstance(value, (list, tuple)):
        return [str(len(value)), *(piece for one in value for piece in _pieces(one))]
    if isinstance(value, (set, frozenset)):
        return _pieces(sorted(value, key=str))
    if isinstance(value, np.ndarray):
        return [str(value.dtype), str(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return [repr(str(value)) if isinstance(value, Secret) else repr(value)]
    if callable(value):
        return [_name_of(value)]
    inside = _pieces(vars(value)) if hasattr(value, "__dict__") else ()  # a user's class may have slots alone
    return [type(value).__name__, *inside]


def _is_asked(one: Field[Any], value: Any) -> bool:
    """Return whether a task's field is part of what identifies its question; see `tasks.base`."""
    counts = one.metadata.get("in_question", True)
    return bool(counts) and not (counts == "if set" and getattr(value, one.name) == one.default)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return _name_of(value)


def _name_of(value: Any) -> str:
    """Return the name of a class or function; of any other object, that of its class."""
    return getattr(value, "__qualname__", type(value).__name__)  # a user's callable object has no name of its own


def _other_parameter(mine: str, theirs: str) -> tuple[str, Any, Any] | None:
    """Return the first of an estimator's parameters that differs, named so that its class may stand before it.

    A parameter that one of them lacks, because a later version brought it, is None there, which is its default.
    """
    ours, others = json.loads(mine), json.loads(theirs)
    name = next((name for name in sorted({*ours, *others}) if ours.get(name) != others.get(name)), None)
    return None if name is None else (f"params, {name}", ours.get(name), others.get(name))


def _shown(mine: object, theirs: object) -> tuple[str, str]:
    """Return two different values as short texts that show where they differ."""
    texts = repr(mine), repr(theirs)
    same = next((i for i, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), min(map(len, texts)))
    start = 0 if max(map(len, texts)) <= _SHOWN else max(0, same - _SHOWN // 3)
    cut = [("…" if start else "") + text[start : start + _SHOWN] for text in texts]
    first, second = (one + ("…" if len(text) > start + _SHOWN else "") for one, text in zip(cut, texts, strict=True))
    return first, second
