"""The report's text and figures, read without a browser (tests/ui opens it in one)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from jobs.search.report.figures import ReportFigure, build_figures
from jobs.search.report.html_report import render_report
from jobs.search.report.pareto import COSTS
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import HOSTILE, row, search

FIGURES = ("curves", "history", "parallel", "importance", *COSTS)


def render(records: list[TrialRecord], **more: Any) -> str:
    """The page without plotly's library, which is in it once."""
    page = render_report(records, **({"name": "chat", "metric": "eval_loss", "mode": "min"} | more))
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def read_figures(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert match is not None
    figures: dict[str, Any] = json.loads(match[1])
    return figures


def figure_of(name: str, records: list[TrialRecord]) -> ReportFigure:
    return next(part for part in build_figures(records, "loss", "min") if part.id == name)


def test_the_file_names_no_other_address():
    page = render(search())
    assert "http:" not in page and "https:" not in page and "//" not in page.replace("</", "")
    assert "src=" not in page and "url(" not in page and len(page) < 200_000
    assert "default-src 'none'" in page


def test_every_trial_has_its_row_with_status_values_and_reason():
    records = search(60)
    page = render(records)
    for record in records:
        start = page.index(f'<tr id="trial-{record.number}"')
        line = page[start : page.index("</tr>", start)]
        assert f"<td>{record.status}</td>" in line and f"<td>{record.reason}</td>" in line
        assert f"<td>{record.config['method.rank']}</td>" in line


def test_the_summary_has_the_best_trial_the_statuses_and_the_budget():
    page = render(search(), budget={"trials": 20, "tokens": 1e6, "seconds": 3600})
    assert "<dd>trial 0, eval_loss 0.8005</dd>" in page
    assert "<dd>4 done, 4 stopped, 2 rejected, 2 failed</dd>" in page
    assert "<dd>163,840 tokens, 320 steps, " in page
    assert "<dd>trials 20, tokens 1,000,000, seconds 3,600</dd>" in page


def test_the_text_of_a_trial_is_escaped_everywhere():
    records = search()
    config = {HOSTILE: HOSTILE, HOSTILE.replace(".", ""): [HOSTILE]}
    records[0] = replace(records[0], config=config, reason=HOSTILE, shared=(HOSTILE,), run=HOSTILE)
    page = render(records, name=HOSTILE, metric=HOSTILE, budget={HOSTILE: 1.0})
    assert "<script>w" not in page and "<img" not in page and "onerror=" in page
    assert len(re.findall("<script", page)) == 3
    figures = json.dumps(read_figures(page), ensure_ascii=False)
    assert "<script>" not in figures and "<img" not in figures and "&lt;script&gt;" in figures


def test_the_page_has_optunas_figures_with_every_trial_that_has_a_result():
    records = search(40)
    figures = read_figures(render(records))
    results = [r for r in records if r.status in ("done", "stopped")]
    assert tuple(figures) == FIGURES
    names = {trace["name"] for trace in figures["curves"]["data"]}
    assert names == {f"Trial{record.number}" for record in results}
    assert figures["history"]["data"][0]["x"] == [record.number for record in results]
    lines = [trace for trace in figures["parallel"]["data"] if trace["mode"] == "lines"]
    assert len(lines) == len(results)
    for cost in COSTS:
        assert sum(len(trace["x"]) for trace in figures[cost]["data"]) == len(results)


def test_a_front_has_the_trials_that_no_other_beats_in_metric_and_cost():
    costs = [1e6, 2e6, 3e6, 2e6]
    records = [row(n, 4.0 - n, node_bytes=cost) for n, cost in enumerate(costs)]
    dominated, front = figure_of("node_bytes", records).figure.data
    assert (list(front.x), list(front.y)) == ([1e6, 2e6], [4.0, 1.0])
    assert sorted(dominated.x) == [2e6, 3e6]
    assert figure_of("node_bytes", [row(0, 1.0, node_bytes=None)]).figure is None


def test_a_value_that_is_not_finite_is_omitted():
    records = search()
    records[1] = replace(records[1], curve=((0, 2.0), (10, float("nan"))))
    curves = figure_of("curves", records).figure.data
    assert [trace.x for trace in curves if trace.name == "Trial1"] == [(0,)]


def test_few_trials_make_importance_a_hint():
    assert "With 8 trials, this is only a rough estimate" in render(search(12))
    assert "a rough estimate" not in render(search(120))
    assert "Unknown: at least 4 trials" in render(search(3))


@pytest.mark.parametrize(
    "records", [[], [TrialRecord(0, {})], [TrialRecord(0, {"a": None}, status="rejected")]]
)
def test_a_search_without_results_has_a_report_that_says_so(records: list[TrialRecord]):
    page = render(records)
    assert "No trial has a result." in page and "none: no trial has a result" in page
    assert page.count('<tr id="trial-') == len(records) and read_figures(page) == {}
