"""The dashboard can be imported, and its panels ask only for what the library exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
TAGS = {
    "skllm_ray_rows": {"model", "outcome"},
    "skllm_ray_tokens": {"model", "kind"},
    "skllm_ray_cost_usd": {"model"},
    "skllm_ray_errors": {"model", "kind"},
    "skllm_ray_audited": {"model", "outcome"},
    "skllm_ray_units_waiting": {"job"},
    "skllm_ray_units_running": {"job"},
    "skllm_ray_quota_used": {"bucket", "what"},
    "skllm_ray_request_seconds": {"model"},
}
"""Metrics by their names in the library, with their tags."""
# As Ray exports them: with a prefix; counters end in _total, histograms become three series.
EXPORTED = {
    **{f"ray_{name}_total": TAGS[name] for name in list(TAGS)[:5]},
    **{f"ray_{name}": TAGS[name] for name in list(TAGS)[5:8]},
    **{f"ray_skllm_ray_request_seconds_{end}": {"model"} for end in ("count", "sum")},
    "ray_skllm_ray_request_seconds_bucket": {"model", "le"},
}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _selected(expression: str) -> list[tuple[str, set[str]]]:
    """Return the metrics that an expression names, each with the tags that choose its series."""
    found = re.findall(r"\b(\w*skllm_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen))) for name, chosen in found]


def test_it_can_be_imported(dashboard: dict[str, Any]) -> None:
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert dashboard.get("id") is None  # Grafana gives one
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_asks_the_chosen_data_source(dashboard: dict[str, Any]) -> None:
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in dashboard["panels"]:
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            assert source == {"type": "prometheus", "uid": "${datasource}"}


def test_the_models_to_choose_from_are_those_with_rows(dashboard: dict[str, Any]) -> None:
    model = next(one for one in dashboard["templating"]["list"] if one["name"] == "model")
    assert model["query"]["query"] == model["definition"] == "label_values(ray_skllm_ray_rows_total, model)"
    assert model["multi"]
    assert model["includeAll"]


def test_expressions_name_known_metrics_and_tags(dashboard: dict[str, Any]) -> None:
    for expression in _expressions(dashboard):
        selected = _selected(expression)
        assert selected, expression
        for name, tags in selected:
            assert name in EXPORTED, expression
            assert tags <= EXPORTED[name], expression
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {tag.strip() for tag in group.split(",")} <= set.union(*(EXPORTED[name] for name, _ in selected))


def test_expressions_are_balanced_and_rate_counters(dashboard: dict[str, Any]) -> None:
    for expression in _expressions(dashboard):
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression
        for name, _ in _selected(expression):
            if name.endswith(("_total", "_bucket")):
                assert re.search(rf"(rate|max_over_time)\({name}\{{[^}}]*\}}\[", expression), expression
            if "model" in EXPORTED[name]:
                assert 'model=~"$model"' in expression


def test_legends_name_tags_that_the_expression_keeps(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            kept = {
                tag.strip() for group in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for tag in group.split(",")
            }
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, target["expr"]


def test_every_metric_has_a_panel(dashboard: dict[str, Any]) -> None:
    shown = {name for expression in _expressions(dashboard) for name, _ in _selected(expression)}
    assert {name for name in EXPORTED if not name.endswith(("_count", "_sum"))} <= shown
    assert {"0.5", "0.95", "0.99"} == set(
        re.findall(r"histogram_quantile\(([\d.]+)", " ".join(_expressions(dashboard)))
    )


def test_the_metrics_are_the_librarys() -> None:
    metrics = pytest.importorskip("skllm_ray.execution.metrics", reason="this version exports no metrics")
    assert {name: set(told[2]) for name, told in metrics.METRICS.items()} == TAGS
