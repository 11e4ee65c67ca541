"""The dashboard and the alerts use existing metrics, and the dashboard all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.control.metrics import ServiceMetrics

FOLDER = Path(__file__).parents[2] / "infra/grafana"
NAME = re.compile(r"\bslora_[a-z_]+\b")
LABELS = re.compile(r"by \(([a-z, ]+)\)")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def list_metrics() -> dict[str, set[str]]:
    """Return the names of each metric in queries, by the name of its family."""
    return {
        family.name: {family.name + part for part in SUFFIXES[family.type]}
        for family in ServiceMetrics().registry.collect()
    }


def list_labels() -> dict[str, set[str]]:
    """Return the labels of each metric, by the name of its family."""
    collectors = (
        value for value in vars(ServiceMetrics()).values() if hasattr(value, "_labelnames")
    )
    return {collector.describe()[0].name: set(collector._labelnames) for collector in collectors}


def load_dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    return document


def list_panel_queries() -> list[str]:
    return [target["expr"] for panel in load_dashboard()["panels"] for target in panel["targets"]]


def list_alert_queries() -> list[str]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def find_metric_names(queries: list[str]) -> Iterator[str]:
    for query in queries:
        yield from NAME.findall(query)


@pytest.mark.parametrize(
    "queries", [list_panel_queries, list_alert_queries], ids=["dashboard", "alerts"]
)
def test_every_query_uses_an_existing_metric(queries: Any):
    existing = set().union(*list_metrics().values())
    assert set(find_metric_names(queries())) - existing == set()


def test_every_metric_is_on_the_dashboard():
    used = set(find_metric_names(list_panel_queries()))
    assert {name for name, names in list_metrics().items() if not names & used} == set()


@pytest.mark.parametrize("query", list_panel_queries() + list_alert_queries())
def test_queries_group_by_existing_labels(query: str):
    names = set(NAME.findall(query))
    known = [list_labels()[family] for family, parts in list_metrics().items() if parts & names]
    for group in LABELS.findall(query):
        required = set(group.replace(" ", "").split(",")) - {"le"}
        assert all(required <= labels for labels in known)


def test_panels_do_not_overlap_and_have_unique_ids():
    panels = load_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    occupied = set[tuple[int, int]]()
    for panel in panels:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        cells = {(x, y) for x in range(position["x"], position["x"] + position["w"])
                 for y in range(position["y"], position["y"] + position["h"])}  # fmt: skip
        assert not cells & occupied, panel["title"]
        occupied |= cells


def test_prometheus_reads_its_token_from_a_file_and_uses_tls():
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["scheme"] == "https" and job["authorization"]["credentials_file"]
    assert "credentials" not in job["authorization"]
