"""What ``skllm-ray demo`` does and shows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.execution.model_actor import ReplicaInfo as Replica
from skllm_ray.llm.registry import resolve
from skllm_ray.plain_text import cell, printable

_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a run of the demo measured."""

    details: pd.DataFrame
    """``predict_details`` of the reviews, with the columns ``text`` and ``label`` added."""
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
    def accuracy(self) -> float:
        """Share of the reviews whose prediction is the label that their author gave them."""
        return float((self.details["prediction"] == self.details["label"]).mean())


def run_demo(*, actors: int, model: str, n_rows: int, address: str | None = None) -> DemoResult:
    """Classify `n_rows` reviews with `actors` model actors, show the result on the terminal, and return it.

    Raises
    ------
    ConfigurationError
        If `model` is not a GGUF model.
    """
    if not model.startswith("gguf::"):
        raise ConfigurationError(f"model={model!r}: the demo runs local models.", "Pass --model gguf::demo.")
    resolve(model).check()
    console = Console()
    with console.status("Starting Ray …") as status:
        started = time.perf_counter()
        skllm_ray.init(address)
        ready = time.perf_counter()
        status.update(cell(f"Loading {model} into {actors} model actors …"))
        SKLLMConfig.set_gguf_resources(model, min_replicas=actors, max_replicas=actors, num_cpus=_cpus_each(actors))
        texts, labels = _reviews(n_rows)
        classifier = ZeroShotGPTClassifier(model=model).fit(texts, labels)
        classifier.predict(texts[:1])
        loaded = time.perf_counter()
        status.update(f"Classifying {n_rows:,} reviews …")
        classifier.predict(texts)
        warm = time.perf_counter()
        details = classifier.predict_details(texts).assign(text=texts, label=labels)
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
        "The reviews were written by hand and kept out of the demo model's training. "
        "gguf::demo is for trying and testing, not for work: pass --model gguf::/path/to/model.gguf for your own.",
        style="dim",
    )
    parts = Group(_summary(result, model), Text(), _confusion(result), Text(), _samples(result), Text(), note)
    return Panel(parts, title="[bold]skllm-ray demo[/bold]", border_style="cyan", box=box.ROUNDED, padding=(1, 2))


def _summary(result: DemoResult, model: str) -> Table:
    n_rows = len(result.details)
    low, high = _interval(result.accuracy, n_rows)
    nodes = len({replica.node for replica in result.replicas})
    memory = sum(replica.memory_mb for replica in result.replicas)
    table = Table.grid(padding=(0, 3))
    table.add_column(style="cyan")
    table.add_column()
    table.add_row("model", cell(f"{model}, scored against {len(result.labels)} labels"))
    table.add_row(
        "accuracy", f"[bold green]{result.accuracy:.1%}[/]  (95% interval {low:.0%} to {high:.0%}, {n_rows} reviews)"
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


def _confusion(result: DemoResult) -> Table:
    counts = pd.crosstab(result.details["label"], result.details["prediction"])
    counts = counts.reindex(index=result.labels, columns=result.labels, fill_value=0)
    table = Table(title="Confusion matrix", title_style="bold", box=box.SIMPLE_HEAVY)
    table.add_column("written as ↓  predicted as →", style="cyan")
    for label in result.labels:
        table.add_column(cell(label), justify="right")
    table.add_column("recall", justify="right", style="dim")
    for label in result.labels:
        row = counts.loc[label]
        cells = [
            f"[bold green]{count}[/]" if other == label else (f"[red]{count}[/]" if count else "[dim]·[/]")
            for other, count in row.items()
        ]
        table.add_row(cell(label), *cells, f"{row[label] / max(1, row.sum()):.0%}")
    return table


def _samples(result: DemoResult) -> Table:
    table = Table(title="A few rows", title_style="bold", box=box.SIMPLE_HEAVY, expand=True)
    table.add_column("review", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    table.add_column("")
    shown = result.details.sample(min(_SAMPLES, len(result.details)), random_state=7)
    for row in shown.to_dict("records"):
        probability = float(row["probability"])
        table.add_row(
            cell(row["text"]),
            cell(row["prediction"]),
            f"{'█' * round(10 * probability)} {probability:.0%}",
            "[green]✓[/]" if row["prediction"] == row["label"] else Text(f"✗ {printable(row['label'])}", style="red"),
        )
    return table


def _reviews(n_rows: int) -> tuple[list[str], list[str]]:
    texts, labels = get_reviews_dataset()
    return texts[:n_rows], labels[:n_rows]


def _cpus_each(actors: int) -> float:
    """Return an equal share of the cluster's CPUs, whole ones where there are enough."""
    from skllm_ray.execution.cluster_status import cluster_cpus

    share = cluster_cpus() / actors
    return float(int(share)) if share >= 1 else round(share, 2)


def _interval(share: float, n: int) -> tuple[float, float]:
    """Return the Wilson score interval at 95%. Source: E. B. Wilson, JASA 22 (1927), p. 209."""
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)
