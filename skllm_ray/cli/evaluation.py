"""What ``skllm-ray evaluate`` compares, and its screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skllm_ray.batch.tools.evaluation_page import (
    cost,
    difference,
    recall,
    share,
    span,
    write_csv,
    write_html,
    write_rows,
)
from skllm_ray.batch.tools.pages import require_pages
from skllm_ray.errors import ConfigurationError
from skllm_ray.plain_text import cell

if TYPE_CHECKING:
    from skllm_ray.batch.tools.evaluate import Comparison, Evaluation
    from skllm_ray.cli.job_file import JobFile

_MATRIX: Final = 6
_LABELS: Final = 15


VARIED: Final = frozenset({
    "task", "labels", "labels_file", "label_descriptions", "renamed_labels", "label_prior", "max_labels", "examples",
    "n_examples", "prompt_template", "request_options", "default_label", "on_error",
})  # fmt: skip
"""Settings that a variant may hold."""


@dataclass(frozen=True)
class Candidate:
    """One of what is compared."""

    name: str
    job: JobFile
    model: str | None


def candidates(job: JobFile, models: str | None, prompts: str | None, variants: str | None) -> list[Candidate]:
    """Return what is compared: every model with every prompt and every variant.

    Parameters
    ----------
    job : JobFile
        The job.
    models : str or None
        Models, separated by commas; the job's where None.
    prompts : str or None
        Files with a prompt template each, separated by commas; the job's prompt where None.
    variants : str or None
        YAML files with settings that stand over the job's, separated by commas. The job without them comes first.

    Raises
    ------
    ConfigurationError
        If a file cannot be read, or holds what cannot vary, or a name stands twice.
    """
    found: list[tuple[list[str], JobFile]] = [([], job)]
    if variants:
        found = [(["as given"], job), *(([name], _varied(job, file)) for name, file in _named(variants))]
    if prompts:
        templates = [(name, _read(file, "prompts")) for name, file in _named(prompts)]
        found = [
            ([*names, name], one.model_copy(update={"prompt_template": template}))
            for names, one in found
            for name, template in templates
        ]
    asked: list[str | None] = [*_parts(models or job.model)] or [None]
    alike = variants and not prompts and len(asked) == 1  # the model need not stand in the names
    made = [
        Candidate(", ".join(names if alike else [model or "the estimator", *names]), one, model)
        for model in asked
        for names, one in found
    ]
    if len({one.name for one in made}) < len(made):
        raise ConfigurationError("models, prompts and variants must name each candidate once.")
    return made


def _varied(job: JobFile, file: str) -> JobFile:
    """Return the job under the settings of a variant's file."""
    from skllm_ray.cli.job_file import checked_job, read_settings

    told = read_settings("variants", file)
    foreign = sorted(set(told) - VARIED)
    if foreign:
        raise ConfigurationError(
            f"variants: {file!r} holds {foreign[0]!r}, which cannot vary.", f"It may hold: {', '.join(sorted(VARIED))}."
        )
    given = job.model_dump(exclude_unset=True)
    if "labels" in told or "labels_file" in told:  # in place of the job's, however those were told
        given = {name: value for name, value in given.items() if name not in {"labels", "labels_file"}}
    return checked_job({**given, **told})


def _named(files: str) -> list[tuple[str, str]]:
    """Return some files, each with what it is called: its name without folders, where these differ."""
    paths = _parts(files)
    short = [Path(path).name for path in paths]
    return list(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def _parts(told: str | None) -> list[str]:
    return [part.strip() for part in (told or "").split(",") if part.strip()]


def _read(file: str, parameter: str) -> str:
    try:
        return Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigurationError(f"{parameter}: {file!r} cannot be read: {reason}.") from None


def checked_files(html: str | None, csv: str | None, rows: str | None) -> Callable[[Comparison], None]:
    """Return a function that writes a comparison into the files, once it is known that they can be written.

    Raises
    ------
    ConfigurationError
        If one of them cannot be written: told before anything is asked.
    MissingExtraError
        If a page is to be written, and its package is not installed.
    """
    writers = [(html, write_html), (csv, write_csv), (rows, write_rows)]
    given = [(path, write) for path, write in writers if path is not None]
    for path, _ in given:
        try:
            with Path(path).open("a"):
                pass
        except OSError as error:
            raise ConfigurationError(f"{path!r} cannot be written: {error.strerror}.") from None
    if html is not None:
        require_pages()

    def write_all(found: Comparison) -> None:
        for path, write in given:
            write(found, path)

    return write_all


def show(found: list[Evaluation]) -> None:
    """Print an evaluation."""
    from rich.console import Console

    console = Console()
    for shown in screen(found):
        console.print(shown)


def screen(found: list[Evaluation]) -> Iterator[Any]:
    """Return what is shown of an evaluation, one after the other."""
    yield _candidates(found)
    first = found[0]
    yield f"Whoever always answers the commonest label is right in {share(first.baseline)} of {first.rows:,} rows."
    yield from _warnings(found)
    for one in found:
        if one.errors == one.rows:
            continue
        yield _label_table(one)
        if one.confusions:
            yield _matrix(one) if len(one.labels) <= _MATRIX else _confusion_table(one)
        if one.certainty:
            yield _certainty_table(one)


def _candidates(found: list[Evaluation]) -> Any:
    from rich import box
    from rich.table import Table

    several, compared = found[0].f1 is not None, len(found) > 1
    title = f"Answers to {found[0].rows:,} labelled rows"
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold", min_width=12)
    right = "all right (95%)" if several else "accuracy (95%)"
    headings = (right, "F1" if several else "", "macro-F1", "vs first" if compared else "")
    for heading in (*headings, "USD/1,000", "rows/s"):
        if heading:
            table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        figures = [f"{share(one.accuracy)} ({100 * one.low:.0f}–{100 * one.high:.0f})"]
        figures += [share(one.f1)] if several else []
        figures += [share(one.macro_f1), *([_marked(one)] if compared else [])]
        if one.errors == one.rows:
            figures = ["not known"] * len(figures)
        figures.append(cost(one.usd_per_1000))
        figures.append("not known" if one.rows_per_s is None else f"{one.rows_per_s:,.1f}")
        table.add_row(cell(one.model), *figures)
    return table


def _marked(one: Evaluation) -> str:
    from rich.markup import escape

    told = escape(difference(one.against_first))
    return f"[bold]{told}[/]" if one.against_first and one.against_first.is_clear else told


def _warnings(found: list[Evaluation]) -> Iterator[Any]:
    if any(one.against_first for one in found):
        yield (
            "vs first: percentage points of accuracy against the first, and the 95% interval on the same rows. In bold "
            "it is clear: the interval leaves out 0."
        )
    if found[0].stopped:
        yield cell(f"Fewer rows were asked: {found[0].stopped}.")
    for one in found:
        if one.failed:
            told = f"{one.model}: {one.failed:,} rows have no label, and count as wrong"
            yield cell(f"{told}; the first reason: {one.reason}" if one.reason else f"{told}.")
        if one.one_label:
            yield cell(f"{one.model}: {one.one_label}")
    for n, models in _foreign(found).items():
        told = f"{n:,} rows have a true label that is no candidate: no answer can be right there."
        yield cell(told if len(models) == len(found) else f"{', '.join(models)}: {told}")


def _foreign(found: list[Evaluation]) -> dict[int, list[str]]:
    """Return who has how many rows whose true label is no candidate."""
    by_count: dict[int, list[str]] = {}
    for one in found:
        if one.foreign:
            by_count.setdefault(one.foreign, []).append(one.model)
    return by_count


def _label_table(one: Evaluation) -> Any:
    from rich.table import Table

    few = len(one.scores) <= _LABELS
    shown = one.scores if few else sorted(one.scores, key=lambda score: (score.f1, -score.rows))[:_LABELS]
    title = (
        f"{one.model}: labels" if few else f"{one.model}: the {_LABELS} of {len(one.scores)} labels with the lowest F1"
    )
    table = Table(title=cell(title), title_justify="left")
    for heading in ("label", "rows", "precision", "recall (95%)", "F1"):
        table.add_column(heading, justify="left" if heading == "label" else "right", overflow="fold")
    for score in shown:
        figures = (share(score.precision), recall(score), share(score.f1))
        table.add_row(cell(score.label), f"{score.rows:,}", *figures)
    return table


def _matrix(one: Evaluation) -> Any:
    from rich.table import Table

    matrix = Table(title=cell(f"{one.model}: rows are the truth, columns the answers"), title_justify="left")
    matrix.add_column("")
    for label in one.labels:
        matrix.add_column(cell(label), justify="right", overflow="fold")
    matrix.add_column("none", justify="right")
    for label, counts in zip(one.labels, one.confusion, strict=True):
        matrix.add_row(cell(label), *map(str, counts))
    return matrix


def _confusion_table(one: Evaluation) -> Any:
    from rich.table import Table

    table = Table(title=cell(f"{one.model}: the commonest mistakes"), title_justify="left")
    for heading in ("in truth", "answered", "rows"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for mistake in one.confusions:
        table.add_row(cell(mistake.truth), cell(mistake.answer or "no valid answer"), f"{mistake.rows:,}")
    return table


def _certainty_table(one: Evaluation) -> Any:
    from rich.table import Table

    table = Table(title=cell(f"{one.model}: how sure it is, and how often it is right"), title_justify="left")
    for heading in ("probability", "rows", "right"):
        table.add_column(heading, justify="left" if heading == "probability" else "right")
    for one_bin in reversed(one.certainty):
        table.add_row(span(one_bin), f"{one_bin.rows:,}", share(one_bin.accuracy))
    table.caption = f"calibration error {share(one.calibration_error)}"
    return table
