"""What the job of a search prints at its end: the table of trials, and where everything lies."""

from __future__ import annotations

from rich.console import Console

from jobs.search.report.live_table import render_table
from jobs.search.search_artifacts import NEXT_SPEC_FILE, REPORT_FILE, RESULTS_FILE
from jobs.search.trial_log import TrialLog
from jobs.spec.schema import SearchSpec
from jobs.store.runs.run_store import RunStore


def print_summary(
    search: SearchSpec, runs: RunStore, trial_log: TrialLog, adapter: str | None
) -> None:
    """The trials, the best one's adapter, and the files."""
    console = Console(width=80, highlight=False)
    console.print(render_table(trial_log.records, search.section.metric, search.section.direction))
    if adapter is not None:
        console.print(f"committed {adapter}")
    for name in (NEXT_SPEC_FILE, RESULTS_FILE, REPORT_FILE):
        console.print(runs.store.url(runs.key(name)), soft_wrap=True)
