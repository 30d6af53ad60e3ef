"""What ``skllm-ray demo`` does and shows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.datasets import get_plain_reviews_dataset, get_reviews_dataset
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.execution.model_actor import ReplicaInfo as Replica
from skllm_ray.llm.registry import resolve
from skllm_ray.plain_text import cell, printable

_SAMPLES = 3
_CERTAINTIES = (0.0, 0.6, 0.8, 0.95)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a run of the demo measured."""

    details: pd.DataFrame
    """``predict_details`` of the reviews, with the columns ``text``, ``label`` and ``is_plain`` added."""
    labels: list[str]
    replicas: list[Replica]
    start_s: float
    """Seconds to start or join Ray."""
    load_s: float
    """Seconds to place the actors and load the model."""
    first_s: float
    """Seconds to classify all reviews for the first time, while Ray starts its workers."""
    predict_s: float
    """Seconds to classify them again, warm."""

    @property
    def plain(self) -> pd.DataFrame:
        """The plainly worded reviews."""
        return self.details[self.details["is_plain"]]

    @property
    def hard(self) -> pd.DataFrame:
        """The other reviews; empty where few rows were asked for."""
        return self.details[~self.details["is_plain"]]

    @property
    def accuracy(self) -> float:
        """Share of the plainly worded reviews whose prediction is the label that their author gave them."""
        return float(_is_right(self.plain).mean())


def run_demo(*, actors: int, model: str, n_rows: int, address: str | None = None) -> DemoResult:
    """Classify `n_rows` reviews with `actors` model actors, show the result on the terminal, and return it.

    Raises
    ------
    ConfigurationError
        If `model` is not a GGUF model.
    """
    spec = resolve(model)
    if not spec.capabilities.stateful:
        raise ConfigurationError(f"model={model!r}: the demo runs local models.", "Pass --model gguf::demo.")
    spec.check()
    console = Console()
    with console.status("Starting Ray …") as status:
        started = time.perf_counter()
        skllm_ray.init(address)
        ready = time.perf_counter()
        status.update(cell(f"Loading {model} into {actors} model actors …"))
        SKLLMConfig.set_gguf_resources(model, min_replicas=actors, max_replicas=actors, num_cpus=_cpus_each(actors))
        texts, labels, is_plain = _reviews(n_rows)
        classifier = ZeroShotGPTClassifier(model=model).fit(texts, labels)
        classifier.predict(texts[:1])
        loaded = time.perf_counter()
        status.update(f"Classifying {len(texts):,} reviews …")
        classifier.predict(texts)
        warm = time.perf_counter()
        details = classifier.predict_details(texts).assign(text=texts, label=labels, is_plain=is_plain)
        finished = time.perf_counter()
    result = DemoResult(
        details,
        [str(label) for label in classifier.classes_],
        loaded_replicas(model),
        ready - started,
        loaded - ready,
        warm - loaded,
        finished - warm,
    )
    console.print(render(result, model))
    skllm_ray.shutdown()
    return result


def render(result: DemoResult, model: str) -> Panel:
    """Return the demo's screen."""
    note = Text(
        "All reviews were written by hand, fixed before the model saw them, and kept out of its training. "
        "gguf::demo is for trying and testing, not for work: pass --model gguf::/path/to/model.gguf for your own.",
        style="dim",
    )
    parts: list[RenderableType] = [
        _summary(result, model),
        Text(),
        _confusion(result.plain, result.labels),
        Text(),
        _certainty(result.plain),
    ]
    if len(result.hard):
        parts += [Text(), _hard(result.hard)]
    parts += [Text(), _samples(result), Text(), note]
    return Panel(
        Group(*parts), title="[bold]skllm-ray demo[/bold]", border_style="cyan", box=box.ROUNDED, padding=(1, 2)
    )


def _summary(result: DemoResult, model: str) -> Table:
    n_rows = len(result.details)
    low, high = _interval(result.accuracy, len(result.plain))
    nodes = len({replica.node for replica in result.replicas})
    memory = sum(replica.memory_mb for replica in result.replicas)
    table = Table.grid(padding=(0, 3))
    table.add_column(style="cyan")
    table.add_column()
    table.add_row("model", cell(f"{model}, scored against {len(result.labels)} labels"))
    table.add_row(
        "accuracy",
        f"[bold green]{result.accuracy:.1%}[/] of {len(result.plain)} plain reviews  "
        f"(95% interval {low:.0%} to {high:.0%})",
    )
    table.add_row(
        "speed",
        f"[bold]{n_rows / result.predict_s:,.0f} rows/s[/]  ({result.predict_s:.1f} s; the first pass, in which Ray "
        f"starts its workers, {result.first_s:.1f} s)",
    )
    table.add_row(
        "actors",
        f"{len(result.replicas)} on {nodes} node(s), {result.replicas[0].threads if result.replicas else 0} thread(s) "
        f"each, {memory:,.0f} MB resident in all",
    )
    slowest = max((replica.load_s for replica in result.replicas), default=0.0)
    table.add_row(
        "start", f"Ray {result.start_s:.1f} s, actors and model {result.load_s:.1f} s (the file itself {slowest:.2f} s)"
    )
    tokens = int(result.details["prompt_tokens"].sum())
    table.add_row("tokens", f"{tokens:,} in prompts, 0 generated: labels are scored, not written")
    return table


def _confusion(details: pd.DataFrame, labels: list[str]) -> Table:
    counts = pd.crosstab(details["label"], details["prediction"])
    counts = counts.reindex(index=labels, columns=labels, fill_value=0)
    table = Table(title="Confusion matrix of the plain reviews", title_style="bold", box=box.SIMPLE_HEAVY)
    table.add_column("written as ↓  predicted as →", style="cyan")
    for label in labels:
        table.add_column(cell(label), justify="right")
    table.add_column("recall", justify="right", style="dim")
    for label in labels:
        row = counts.loc[label]
        cells = [
            f"[bold green]{count}[/]" if other == label else (f"[red]{count}[/]" if count else "[dim]·[/]")
            for other, count in row.items()
        ]
        table.add_row(cell(label), *cells, f"{row[label] / max(1, row.sum()):.0%}")
    return table


def _certainty(details: pd.DataFrame) -> Table:
    """Return what probabilities are for: how often the model is right, by how sure it is."""
    table = Table(title="How sure it is, and how often it is right", title_style="bold", box=box.SIMPLE_HEAVY)
    for heading in ("probability of its label", "reviews", "right"):
        table.add_column(heading, justify="left" if heading.startswith("prob") else "right")
    bounds = [*_CERTAINTIES, 1.0]
    for low, high in reversed(list(pairwise(bounds))):
        of_these = details[(details["probability"] >= low) & ((details["probability"] < high) | (high == 1.0))]
        if len(of_these):
            span = f"{low:.0%} and more" if high == 1.0 else f"{low:.0%} to {high:.0%}" if low else f"below {high:.0%}"
            table.add_row(span, f"{len(of_these)}", _bar(float(_is_right(of_these).mean())))
    return table


def _hard(details: pd.DataFrame) -> Text:
    """Return how it does on reviews that are beyond it, and what its probabilities are worth there."""
    order = _is_right(details.sort_values("probability", ascending=False)).to_numpy()
    half = len(order) // 2
    return Text.from_markup(
        f"[bold]{len(order)} harder reviews[/] (irony, hints, many sentences) are beyond it: {order.mean():.0%} right. "
        f"The half of which it is surest: [bold green]{order[:half].mean():.0%}[/]; the other half: "
        f"[bold red]{order[half:].mean():.0%}[/]."
    )


def _is_right(details: pd.DataFrame) -> pd.Series[bool]:
    return details["prediction"] == details["label"]


def _bar(share: float) -> str:
    return f"{'█' * round(10 * share)} {'>99%' if 0.995 <= share < 1 else f'{share:.0%}'}"


def _samples(result: DemoResult) -> Table:
    table = Table(title="A few rows", title_style="bold", box=box.SIMPLE_HEAVY, expand=True)
    table.add_column("review", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    table.add_column("")
    parts = [rows.sample(min(_SAMPLES, len(rows)), random_state=7) for rows in (result.plain, result.hard)]
    for row in pd.concat(parts).to_dict("records"):
        table.add_row(
            cell(row["text"]),
            cell(row["prediction"]),
            _bar(float(row["probability"])),
            "[green]✓[/]" if row["prediction"] == row["label"] else Text(f"✗ {printable(row['label'])}", style="red"),
        )
    return table


def _reviews(n_rows: int) -> tuple[list[str], list[str], list[bool]]:
    """Return the plain reviews, then the harder ones, `n_rows` in all; their labels; and which are plain."""
    plain, others = get_plain_reviews_dataset(), get_reviews_dataset()
    texts, labels = plain[0] + others[0], plain[1] + others[1]
    is_plain = [True] * len(plain[0]) + [False] * len(others[0])
    return texts[:n_rows], labels[:n_rows], is_plain[:n_rows]


def _cpus_each(actors: int) -> float:
    """Return an equal share of the cluster's CPUs, whole ones where there are enough."""
    from skllm_ray.execution.cluster_status import cluster_cpus

    share = cluster_cpus() / actors
    return float(int(share)) if share >= 1 else round(share, 2)


def _interval(share: float, n: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `n` at 95%."""
    found = binomtest(round(share * n), n).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)
