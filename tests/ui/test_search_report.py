"""The report of a search in a real browser: it opens without errors and runs no foreign text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.search.report.html_report import render_report
from jobs.search.report.pareto import COSTS
from tests.jobs.search.builders import HOSTILE, search
from tests.ui.conftest import Tab

pytestmark = pytest.mark.browser

FIGURES = ("curves", "history", "parallel", "importance", *COSTS)


def test_the_report_opens_without_errors_and_shows_its_figures_and_its_table(
    opened: Callable[..., Tab], tmp_path: Path
):
    records = search(24)
    config = {**records[6].config, HOSTILE: HOSTILE, "method.mask": HOSTILE}
    records[6] = replace(records[6], config=config, reason=HOSTILE)
    path = tmp_path / "report.html"
    path.write_text(render_report(records, name=HOSTILE, metric="eval_loss", mode="min"))
    tab = opened(path)
    for name in FIGURES:
        figure = tab.page.locator(f"#{name} .main-svg").first
        figure.wait_for(timeout=60_000)
        box = figure.bounding_box()
        assert box is not None and box["width"] > 500 and box["height"] > 300, name
    assert tab.page.locator("#parallel .scatterlayer .trace").count() == 17
    assert tab.complaints == [] and tab.requests == [path.as_uri()]
    assert tab.page.locator("tbody tr").count() == len(records)
    assert HOSTILE in tab.page.locator("#trial-6").inner_text() and HOSTILE in tab.page.title()
    assert tab.page.evaluate("window.hacked") is None and tab.page.locator("img").count() == 0
