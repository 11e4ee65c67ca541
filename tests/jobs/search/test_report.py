"""The report's text and figures, read without a browser (tests/ui opens it in one)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from jobs.search.report.figures import curves, importances, tradeoffs
from jobs.search.report.groups import BEST, GOOD, OTHER, UNENDED, grouped, marked
from jobs.search.report.html_report import render_report
from jobs.search.report.page import Section, page
from jobs.search.report.parallel import parallel
from jobs.search.report.pareto import find_front
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import HOSTILE, row, search


def page_of(rows: list[TrialRecord], **more: Any) -> str:
    return render_report(rows, **({"name": "chat", "metric": "eval_loss", "mode": "min"} | more))


def without_library(told: str) -> str:
    assert told.count(get_plotlyjs()) == 1
    return told.replace(get_plotlyjs(), "")


def figures_in(told: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', told, re.S)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def test_the_file_holds_the_library_once_and_names_no_other_place():
    rest = without_library(page_of(search()))
    assert "http:" not in rest and "https:" not in rest and "//" not in rest.replace("</", "")
    assert "src=" not in rest and "url(" not in rest and len(rest) < 100_000
    assert "default-src 'none'" in rest


def test_every_trial_has_its_line_with_status_and_reason():
    rows = search(60)
    told = page_of(rows)
    for trial in rows:
        start = told.index(f'<tbody id="trial-{trial.number}"')
        line = told[start : told.index("</tbody>", start)]
        assert f">{trial.status}<" in line and trial.reason in line
        assert str(trial.config["method.rank"]) in line


def test_the_head_tells_the_best_trial_what_was_spent_and_how_trials_ended():
    told = page_of(search(), budget={"trials": 20, "tokens": 1e6, "seconds": 3600})
    assert '<a href="#trial-0">trial 0</a>, <strong>eval_loss 0.8005</strong>' in told
    assert "4 done, 4 stopped, 2 failed, 2 rejected" in told
    assert "12 of 20 trials, 163,840 of 1,000,000 tokens, 320 steps; seconds: at most 3,600" in told


def test_text_of_a_trial_is_escaped_wherever_it_stands():
    rows = search()
    # Without its dots a key is its own short name.
    config = {HOSTILE: HOSTILE, HOSTILE.replace(".", ""): [HOSTILE]}
    rows[0] = replace(rows[0], config=config, reason=HOSTILE, shared=(HOSTILE,), run=HOSTILE)
    told = page_of(rows, name=HOSTILE, metric=HOSTILE, budget={HOSTILE: 1.0})
    rest = without_library(told)
    assert "<script>w" not in rest and "<img" not in rest and "onerror=" in rest
    assert len(re.findall("<script", rest)) == 3
    hover = " ".join(trace["hovertext"] for trace in figures_in(told)["curves"]["data"])
    assert "<script>" not in hover and "&lt;script&gt;" in hover


def test_a_figure_can_not_end_the_element_it_stands_in():
    class Figure:
        def to_json(self, engine: str) -> str:
            return json.dumps({"told": "</script><script>"})

    made = page("t", "", [Section("a", "A", "", Figure())], "")
    assert figures_in(made) == {"a": {"told": "</script><script>"}}


def test_a_text_for_a_figure_is_cut_and_has_no_markup():
    assert marked("<b>" + "x" * 200) == "&lt;b&gt;" + "x" * 76 + "…"


def test_trials_are_told_apart_by_how_well_they_did():
    rows = [row(n, float(n)) for n in range(8)] + [row(8, 0.0, status="failed"), row(9, None)]
    known = grouped(rows, "min")
    assert [known[n] for n in (0, 1, 2, 8, 9)] == [BEST, GOOD, OTHER, UNENDED, UNENDED]
    assert grouped(rows, "max")[7] is BEST


def test_the_best_curve_is_drawn_last_and_a_value_that_is_no_number_is_left_out():
    rows = search()
    rows[1] = replace(rows[1], curve=((0, 2.0), (10, float("nan"))))
    figure = curves(rows, "eval_loss", "min")
    assert len(figure.data) == 8 and figure.data[-1].name == BEST.name
    assert (0,) in [trace.x for trace in figure.data]


def test_costs_far_apart_have_a_log_axis_and_others_a_plain_one():
    rows = [row(n, float(n), node_bytes=10.0 ** (n + 3), adapter_bytes=1e6 + n) for n in range(4)]
    figure = tradeoffs(rows, "eval_loss", "min")
    kinds = [
        axis.type for axis in (figure.layout.xaxis, figure.layout.xaxis2, figure.layout.xaxis3)
    ]
    assert kinds == ["linear", "log", "linear"]
    rows[0] = replace(rows[0], node_bytes=0.0)
    assert tradeoffs(rows, "eval_loss", "min").layout.xaxis2.type == "linear"


def test_the_front_in_the_figure_is_the_front():
    rows = search(40)
    figure = tradeoffs(rows, "eval_loss", "min")
    drawn = [len(trace.x) for trace in figure.data if trace.name == "Pareto front"]
    assert drawn == [len(find_front(rows, "min"))] * 3


@pytest.mark.parametrize(("mode", "up"), [("min", 0), ("max", 1)])
def test_the_better_trial_ends_higher(mode: Any, up: int):
    rows = [row(n, float(n), config={"a": n}) for n in range(2)]
    ends = {trace.hovertext[6]: trace.y[-1] for trace in parallel(rows, "m", mode).data}
    assert ends[str(up)] > ends[str(1 - up)]


def test_a_trial_without_a_result_ends_before_the_metric():
    rows = [row(0, 1.0), row(1, None, status="failed", config={"method.rank": 4})]
    lengths = {trace.name: len(trace.y) for trace in parallel(rows, "m", "min").data}
    assert lengths == {BEST.name: 2, UNENDED.name: 1}


def test_numbers_of_a_wide_range_have_a_log_axis_and_few_ones_a_place_each():
    rows = [row(n, 1.0, config={"lr": 1e-5 * 2**n, "rank": 2 ** (n % 3)}) for n in range(12)]
    layout = parallel(rows, "m", "min").layout
    assert layout.xaxis.ticktext == ("lr (log)", "rank", "m")
    ranks = {note.text: note.y for note in layout.annotations if note.x == 1}
    assert ranks == {"1": 0.0, "2": 0.5, "4": 1.0}


def test_importance_has_a_bar_a_key_with_the_largest_on_top():
    figure = importances({"a": 0.7, "b": 0.3})
    assert figure.data[0].y == ("b", "a") and figure.data[0].text == ("30%", "70%")


def test_few_trials_make_importance_a_hint():
    assert "From 8 trials this is a hint" in page_of(search(12))
    assert "this is a hint" not in page_of(search(120))
    assert "Not told" in page_of(search(3))


@pytest.mark.parametrize(
    "rows", [[], [TrialRecord(0, {})], [TrialRecord(0, {"a": None}, status="rejected")]]
)
def test_a_search_of_nothing_says_so_in_place_of_figures(rows: list[TrialRecord]):
    told = page_of(rows)
    assert "No trial came to a result." in told and "none: no trial came to a result" in told
    assert told.count("<tbody") == len(rows)
