"""A search's report in a real browser: what a person sees, and that nothing in it misbehaves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from jobs.search.report.html_report import render_report
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import HOSTILE, row, search
from tests.ui.conftest import WIDTH, Tab

pytestmark = pytest.mark.browser

FIGURES = ("curves", "tradeoffs", "parallel", "importance")


def trials() -> list[TrialRecord]:
    """One of every status, and one whose every text is an attack."""
    rows = search(24)
    rows[6] = replace(rows[6], status="running")
    rows[8] = replace(rows[8], status="waiting", metric=None, curve=(), steps=0)
    rows[9] = replace(
        rows[9], config={**rows[9].config, "method.mask": HOSTILE, HOSTILE: 1}, reason=HOSTILE
    )
    return rows


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_report(trials(), name=f"chat {HOSTILE}", metric="eval_loss", mode="min"))
    return path


def drawn(tab: Tab) -> Page:
    """The tab's page, once its last figure stands."""
    tab.page.wait_for_selector("#importance .main-svg .barlayer .point", timeout=60_000)
    return tab.page


def picture(page: Page, selector: str | None = None) -> Image.Image:
    clip = page.locator(selector).bounding_box() if selector else None
    shot = page.screenshot(full_page=True, clip=clip)
    return Image.open(io.BytesIO(shot)).convert("RGB")


def colours(image: Image.Image) -> int:
    found = image.getcolors(maxcolors=image.width * image.height)
    return len(found or ())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_and_asks_the_network_for_nothing(
    opened: Callable[..., Tab], report: Path, scheme: str
):
    tab = opened(report, scheme)
    drawn(tab)
    assert tab.complaints == [] and tab.requests == [report.as_uri()]


@pytest.mark.parametrize(("scheme", "ground"), [("light", (255,) * 3), ("dark", (15, 18, 22))])
def test_its_picture_has_the_pages_size_and_every_figure_is_on_it(
    opened: Callable[..., Tab], report: Path, scheme: str, ground: tuple[int, int, int]
):
    page = drawn(opened(report, scheme))
    whole = picture(page)
    wide, high = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert whole.size == (WIDTH, high) and wide == WIDTH
    assert whole.getpixel((2, 2)) == ground and high > 2000
    for figure in FIGURES:
        assert colours(picture(page, f"#{figure}")) > 50, figure


def test_every_trial_is_to_be_read_with_its_status_and_its_reason(
    opened: Callable[..., Tab], report: Path
):
    page = drawn(opened(report))
    for trial in trials():
        lines = page.locator(f"#trial-{trial.number}")
        assert lines.locator("th").is_visible()
        assert lines.locator("th").inner_text().split()[0] == str(trial.number)
        assert lines.locator(".status").is_visible()
        assert lines.locator(".status").inner_text() == trial.status
        if trial.reason:
            assert lines.locator(".why").is_visible()
            assert trial.reason in lines.locator(".why").inner_text()


def test_every_trial_is_a_line_in_the_figures(opened: Callable[..., Tab], report: Path):
    page = drawn(opened(report))
    curved = [trial for trial in trials() if trial.curve]
    assert page.locator("#parallel .scatterlayer .trace").count() == len(trials())
    assert page.locator("#curves .scatterlayer .trace").count() == len(curved)
    ends = page.locator("#curves .textpoint text").all_text_contents()
    assert {int(end) for end in ends if end.strip()} == {trial.number for trial in curved}


def test_pointing_at_a_trial_tells_its_values(opened: Callable[..., Tab], report: Path):
    page = drawn(opened(report))
    page.locator("#curves").scroll_into_view_if_needed()
    box = page.locator("#curves .scatterlayer .trace").last.locator(".point").last.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    told = page.locator("#curves .hoverlayer .hovertext")
    told.wait_for()
    assert re.search(r"trial \d+: .*rank = \d+", told.text_content() or "")


def test_text_of_a_trial_is_shown_and_never_obeyed(opened: Callable[..., Tab], report: Path):
    page = drawn(opened(report))
    assert page.evaluate("window.hacked") is None
    assert page.locator("#trial-9").inner_text().count(HOSTILE) == 2
    assert HOSTILE in page.title() and page.locator("img").count() == 0


def test_even_text_that_was_not_escaped_could_not_run(opened: Callable[..., Tab], report: Path):
    raw = report.read_text()
    report.write_text(raw.replace("<main>", f"<main>{HOSTILE}", 1))
    tab = opened(report)
    page = drawn(tab)
    assert page.locator("main > img").count() == 1
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.parametrize(
    "rows",
    [[], [row(0, None, status="failed", reason="out of memory", config={})], [row(0, 0.5)]],
    ids=["no trial", "none that ended well", "one"],
)
def test_a_search_that_came_to_little_has_a_report_too(
    opened: Callable[..., Tab], tmp_path: Path, rows: list[TrialRecord]
):
    path = tmp_path / "report.html"
    path.write_text(render_report(rows, name="chat", metric="accuracy", mode="max"))
    tab = opened(path)
    tab.page.wait_for_function("window.Plotly !== undefined", timeout=60_000)
    assert tab.complaints == []
    assert tab.page.locator("tbody").count() == len(rows)
    assert tab.page.locator("main h2").count() == 5
