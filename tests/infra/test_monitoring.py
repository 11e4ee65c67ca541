"""The dashboard and the alerts ask for metrics that there are, and leave none out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.service.observer import Observer

FOLDER = Path(__file__).parents[2] / "infra/grafana"
NAME = re.compile(r"\bslora_[a-z_]+\b")
LABELS = re.compile(r"by \(([a-z, ]+)\)")
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def metrics() -> dict[str, set[str]]:
    """Every metric, by the name of its family, with all names that it is asked for under."""
    return {
        family.name: {family.name + part for part in PARTS[family.type]}
        for family in Observer().registry.collect()
    }


def labels() -> dict[str, set[str]]:
    """The labels of each metric, by the family's name."""
    collectors = (value for value in vars(Observer()).values() if hasattr(value, "_labelnames"))
    return {one.describe()[0].name: set(one._labelnames) for one in collectors}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    return found


def shown() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def alerts() -> list[str]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def asked(queries: list[str]) -> Iterator[str]:
    for query in queries:
        yield from NAME.findall(query)


@pytest.mark.parametrize("queries", [shown, alerts], ids=["dashboard", "alerts"])
def test_every_query_asks_for_a_metric_that_there_is(queries: Any):
    there = set().union(*metrics().values())
    assert set(asked(queries())) - there == set()


def test_every_metric_is_on_the_dashboard():
    on_it = set(asked(shown()))
    assert {name for name, names in metrics().items() if not names & on_it} == set()


@pytest.mark.parametrize("query", shown() + alerts())
def test_a_query_groups_by_labels_that_its_metric_has(query: str):
    names = set(NAME.findall(query))
    known = [labels()[family] for family, parts in metrics().items() if parts & names]
    for group in LABELS.findall(query):
        wanted = set(group.replace(" ", "").split(",")) - {"le"}
        assert all(wanted <= labels for labels in known)


def test_panels_lie_beside_each_other_and_have_ids_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_shows_a_token_from_a_file_and_asks_by_tls():
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["scheme"] == "https" and job["authorization"]["credentials_file"]
    assert "credentials" not in job["authorization"]
