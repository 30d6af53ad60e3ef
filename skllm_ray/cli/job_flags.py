"""Makes a flag of each field of a job file that a flag can say.

A new option is no line here: it is a field of `JobFile` in :mod:`.job_file` (what is asked), or of `JobOptions` in
:mod:`skllm_ray.batch.job.options` (how a job runs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final, get_args, get_origin

import click

ONLY_RUN: Final = frozenset({
    "output", "keep_columns", "filename_column", "output_prefix", "keep_replies", "limit", "retry_errors", "workers",
    "unit_rows", "priority", "wait_for_server_s", "delivery", "deadline", "batch_price_share", "keep_remote_files",
    "keep_going", "max_words", "focus", "language", "entities", "fast_model", "fast_request_options",
    "fast_input_price", "fast_output_price", "max_disagreement", "confidence", "n_samples", "score", "audit_share",
    "n_repeats",
})  # fmt: skip
"""Fields that a command which asks about some labelled rows has no use for; it takes them, as a job's file has them."""


def job_options(unused: Collection[str] = ()) -> list[click.Parameter]:
    """Return an option for each field of a job file that a flag can say; the help is silent of those `unused`."""
    from skllm_ray.batch.job.options import JobOptions
    from skllm_ray.cli.job_file import JobFile

    found: list[click.Parameter] = []
    own = {
        name: field for name, field in JobFile.model_fields.items() if name not in {*JobOptions.model_fields, "task"}
    }
    for name, field in {**own, **JobOptions.model_fields}.items():  # what is asked, then how
        kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] or [field.annotation]
        kind = kinds[0] if get_origin(field.annotation) is not None and len(kinds) == 1 else field.annotation
        shown = "" if field.default in (None, "", [], False) else f"  [default: {field.default}]"
        options: dict[str, Any] = {"help": f"{field.description}{shown}", "default": None, "hidden": name in unused}
        if name in {"keep_replies", "on_error", "delivery"}:
            options["type"] = click.Choice(get_args(field.annotation))
        elif name == "input":  # a path may hold a comma
            options.update(multiple=True, callback=_as_list, metavar="PATH", help=f"{field.description} Several times.")
        elif name == "text_template":
            options.update(callback=_unescaped, help=rf"{field.description} \n is a line break, \\ a backslash.")
        elif get_origin(kind) is dict or kind is dict or "dict" in str(kind):
            options.update(callback=_as_json, metavar="JSON")
        elif "list" in str(field.annotation):
            options.update(multiple=True, callback=_as_list, metavar="TEXT[,TEXT…]")
        elif kind is bool:
            options.update(is_flag=True)
        elif kind in {int, float}:
            options["type"] = kind
        found.append(click.Option([f"--{name.replace('_', '-')}"], **options))
    return found


def _as_list(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    del ctx
    if not value:
        return None
    if param.name == "input":
        return list(value)
    return [part.strip() for one in value for part in one.split(",") if part.strip()]


def _unescaped(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    r"""Return a flag's text with ``\n``, ``\t`` and ``\\`` as what they stand for: shells leave them as they are."""
    del ctx, param
    if value is None:
        return None
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], "\\"), value)


def _as_json(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    del ctx
    return from_json(str(param.name), value)


def from_json(name: str, value: str | None) -> Any:
    """Return the JSON in `value`, or in the file that it names after an ``@``; its text appears in no message."""
    if value is None:
        return None
    try:
        if value.startswith("@"):
            with click.open_file(value[1:]) as file:
                value = file.read()
        return json.loads(value)
    except (OSError, ValueError):
        raise click.BadParameter("it must be JSON, or @FILE with JSON.", param_hint=f"--{name}") from None
