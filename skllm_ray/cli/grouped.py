"""Help in groups, with examples: commands whose ``--help`` can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

_COMMANDS: Final[Mapping[str, Sequence[str]]] = {
    "Begin": ("demo", "doctor", "models"),
    "Decide, before the big job": ("labels", "estimate", "evaluate"),
    "Do it, and look at it": ("run", "batches", "report", "review", "limits"),
    "More": (),
}
_OPTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Input and output": (
        "input", "output", "text-column", "text-template", "keep-columns", "filename-column", "output-prefix",
        "storage-options",
    ),
    "The model": ("model", "estimator", "request-options", "prompt-template", "max-output-tokens", "gpt-url"),
    "Labels": (
        "labels", "labels-file", "label-descriptions", "label-column", "renamed-labels", "default-label", "max-labels",
        "examples", "n-examples", "label-prior", "random-state",
    ),
    "Other tasks than labels": ("max-words", "focus", "language", "entities"),
    "Which rows and candidates to ask": ("models", "prompts", "variants", "sample", "as-if-rows", "seed"),
    "What to write": ("html", "csv", "rows", "json", "to"),
    "Money": (
        "budget-usd", "input-price", "output-price", "delivery", "batch-price-share", "deadline", "keep-remote-files",
        "reply-cache",
    ),
    "Speed and limits": (
        "requests-per-minute", "tokens-per-minute", "max-concurrency", "without-probabilities", "workers", "unit-rows",
        "priority", "replicas", "gpu-layers", "address",
    ),
    "When rows fail": ("on-error", "retry-errors", "keep-going", "wait-for-server-s", "keep-replies", "limit"),
    "Two models: a fast one where it is sure": (
        "fast-model", "max-disagreement", "confidence", "n-samples", "score", "audit-share", "n-repeats",
        "fast-request-options", "fast-input-price", "fast-output-price",
    ),
    "More": (),
}  # fmt: skip
"""Each group's options; those that stand nowhere are in the last one."""


_WHOLE: Final = 1000
"""More characters than any command's first sentence has."""
_MANY: Final = 15
"""Options from which on they stand in groups."""


class Examples(click.Command):
    """A command that shows examples, and its options in groups.

    Parameters
    ----------
    examples : sequence of str, default=()
        Commands that work, or would.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in groups where there are many."""
        lines = {
            param.opts[0].removeprefix("--"): line
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (line := param.get_help_record(ctx)) is not None
        }
        groups = grouped(lines, _OPTIONS)
        if len(lines) < _MANY:
            groups = {"Options": list(lines.values())}
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class Commands(click.Group):
    """A group that shows examples, and its commands in groups."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, in groups."""
        del ctx
        lines = {name: (name, command.get_short_help_str(_WHOLE)) for name, command in sorted(self.commands.items())}
        groups = grouped(lines, _COMMANDS)
        if len(groups) == 1:
            groups = {"Commands": list(lines.values())}
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


def grouped(
    lines: Mapping[str, tuple[str, str]], groups: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[str, str]]]:
    """Return lines by the group that names them; the last group has those that none names.

    Examples
    --------
    >>> grouped({"a": ("-a", ""), "b": ("-b", "")}, {"First": ("b",), "More": ()})
    {'First': [('-b', '')], 'More': [('-a', '')]}
    """
    named = {name for names in groups.values() for name in names}
    rest = list(groups)[-1]
    found = {
        title: [
            lines[name] for name in (*names, *_rest(lines, named if title == rest else set(lines))) if name in lines
        ]
        for title, names in groups.items()
    }
    return {title: rows for title, rows in found.items() if rows}


def _rest(lines: Mapping[str, Any], named: set[str]) -> list[str]:
    return [name for name in lines if name not in named]


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write examples as they are, with `$` where a command begins: no line of theirs is broken elsewhere."""
    if examples:
        with formatter.section("Examples"):
            for line in "\n".join(examples).splitlines():
                formatter.write(f"  {'$ ' if line.startswith('skllm-ray ') else ''}{line}\n")
