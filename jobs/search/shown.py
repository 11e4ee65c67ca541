"""What a search says: a line when a trial starts or ends, and at the end where everything lies."""

from __future__ import annotations

from rich.console import Console

from jobs.narrate import plain
from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.leave import NEXT, REPORT, RESULTS
from jobs.search.pareto import best
from jobs.search.rows import Row
from jobs.store.runs import RunStore


def say(row: Row) -> None:
    """One line for a trial as it is now."""
    values = ", ".join(f"{key.rpartition('.')[2]} {_short(v)}" for key, v in row.config.items())
    told = f"trial {row.number} {row.status}"
    told += f" at step {row.steps}" if row.steps else ""
    told += f": {row.metric:.4f}" if row.metric is not None else ""
    why = f" ({row.reason})" if row.reason else ""
    print(plain(f"{told}  [{values}]{why}"), flush=True)


def shown(search: Search, runs: RunStore, diary: Diary, adapter: str | None) -> None:
    """The end: the best trial, what it cost, and the files."""
    found = best(diary.rows, search.section.direction)
    console = Console(width=80, highlight=False)
    if found is not None:
        console.print(f"best: trial {found.number}, {search.section.metric} {found.metric:.4f}")
        for key, value in found.config.items():
            console.print(f"  {key}: {_short(value)}")
    if adapter is not None:
        console.print(f"committed {adapter}")
    for name in (NEXT, RESULTS, REPORT):
        console.print(runs.store.url(runs.key(name)), soft_wrap=True)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
