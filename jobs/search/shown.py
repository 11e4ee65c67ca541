"""What the job of a search prints at its end: the table of trials, and where everything lies."""

from __future__ import annotations

from rich.console import Console

from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.leave import NEXT, REPORT, RESULTS
from jobs.search.table import live
from jobs.store.runs import RunStore


def shown(search: Search, runs: RunStore, diary: Diary, adapter: str | None) -> None:
    """The trials, the best one's adapter, and the files."""
    console = Console(width=80, highlight=False)
    console.print(live(diary.rows, search.section.metric, search.section.direction))
    if adapter is not None:
        console.print(f"committed {adapter}")
    for name in (NEXT, RESULTS, REPORT):
        console.print(runs.store.url(runs.key(name)), soft_wrap=True)
