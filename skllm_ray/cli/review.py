"""``skllm-ray review``: rows that a person should look at, and their corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from skllm_ray.cli.batch import messages, show_table
from skllm_ray.cli.grouped import Examples
from skllm_ray.cli.job_flags import from_json
from skllm_ray.plain_text import printable

if TYPE_CHECKING:
    from skllm_ray.batch.review import Corrections


@click.command(
    cls=Examples,
    examples=[
        "skllm-ray review out/ --to review.csv",
        "skllm-ray review out/ --corrections review.csv --examples examples.csv \\\n    --student student.skops",
    ],
)
@click.argument("output")
@click.option("--to", type=click.Path(dir_okay=False), default=None, help="Write the rows to look at, as CSV.")
@click.option(
    "--rows",
    default=None,
    show_default="200, of a small output a fifth",
    type=click.IntRange(0),
    help="How many uncertain and disputed.",
)
@click.option(
    "--random",
    default=None,
    show_default="50, of a small output a twentieth",
    type=click.IntRange(0),
    help="How many at random besides.",
)
@click.option("--seed", default=0, show_default=True, help="Which random rows.")
@click.option("--corrections", type=click.Path(dir_okay=False), default=None, help="That file, filled in.")
@click.option("--examples", type=click.Path(dir_okay=False), default=None, help="Write all corrections for few-shot.")
@click.option(
    "--student", type=click.Path(dir_okay=False), default=None, help="Train a student on the corrected output."
)
@click.option("--storage-options", default=None, help="JSON: what opens the filesystem.")
def review(output: str, to: str | None, rows: int | None, random: int | None, seed: int, corrections: str | None,
           examples: str | None, student: str | None, storage_options: str | None) -> None:  # fmt: skip
    """Look at uncertain and disputed rows, and take corrections back.

    First --to writes a table: rows about which the model was unsure or a cascade's models disagree, rows without an
    answer, and random ones. Each has its label, its probability and the texts most like it. Fill in correct_label: the
    true label, or = where the label is right. Then --corrections takes the table back: it tells how good the answers
    are, keeps the corrections beside the output, and feeds them to few-shot examples or to a student.
    """
    with messages():
        from skllm_ray.batch.review import correct
        from skllm_ray.batch.review import review as rows_of
        from skllm_ray.errors import ConfigurationError

        opens = from_json("storage-options", storage_options)
        if not (to or corrections or examples or student):
            raise ConfigurationError("Nothing is to be done.", "--to review.csv writes rows, --corrections takes them.")
        if corrections or examples or student:
            found = correct(output, corrections, storage_options=opens)
            if not found.rows:
                raise ConfigurationError("No row was corrected yet.", "Fill in correct_label, and pass --corrections.")
            show_table("Review", found.facts())
            if examples:
                found.write_examples(examples)
                click.echo(f"wrote {printable(examples)}: run few-shot --examples {printable(examples)}")
            if student:
                _train(output, found, student, opens)
        if to:
            table = rows_of(output, n_rows=rows, n_random=random, seed=seed, storage_options=opens)
            table.to_csv(to, index=False, encoding="utf-8-sig")
            kinds = ", ".join(f"{n:,} {why}" for why, n in table["why"].value_counts().items())
            click.echo(f"wrote {printable(to)}: {kinds or 'no row'}. Fill in correct_label, then pass --corrections.")


def _train(output: str, found: Corrections, path: str, opens: Any) -> None:
    """Train a student on an output's labels, the corrected ones in their places, and save it."""
    from skllm_ray.batch.review import labelled_texts
    from skllm_ray.classification import DistilledClassifier

    texts, labels = labelled_texts(output, found, storage_options=opens)
    DistilledClassifier.of_labels(texts, labels).save(path)
    click.echo(f"wrote {printable(path)}, taught by {len(texts):,} rows: --fast-model {printable(path)}")
