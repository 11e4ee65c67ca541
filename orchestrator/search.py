"""`slora search`: the same job that `ray job submit` runs, on a local Ray, its table drawn live."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.live import Live

from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.leave import NEXT, REPORT, RESULTS, SEARCH, keep_asked, outcome
from jobs.search.table import line_of, live
from jobs.store.objects import open_store
from jobs.store.runs import RunStore, new_run_id
from orchestrator.console import note, notes, print_json, results
from orchestrator.train import INTERRUPTED, paper_at, run_here

TICK_S = 0.5


def search(asked: Search, *, resume: str | None, json: bool) -> int:
    """Runs the search to its end and shows what it found. Returns the job's exit code."""
    spec = asked.spec
    run_id = resume or new_run_id(f"{spec.name[:40]}-search", datetime.now(UTC))
    runs = RunStore(open_store(spec.store), run_id)
    keep_asked(asked, runs, resumed=resume is not None)
    note(f"search {run_id}")
    words = ["jobs.search", "--spec", paper_at(runs, SEARCH)]
    words += ["--resume" if resume else "--run", run_id]
    done = run_here(
        words,
        runs,
        job_id=f"{run_id}-{secrets.token_hex(2)}",
        cpus=_cpus(asked),
        watch=lambda alive: _watch(asked, runs, alive),
    )
    if not done:
        note(f"stopped; nothing of it runs on, and `slora search SPEC --resume {run_id}` goes on")
        return INTERRUPTED
    _show(asked, runs, json=json)
    return 0


def _cpus(asked: Search) -> int:
    """For a Ray that is started for it: this machine's, and at least one trial's."""
    one = _most(asked, "cluster.workers", asked.spec.workers)
    one *= _most(asked, "cluster.cpus_per_worker", asked.spec.cluster.cpus_per_worker)
    most = one * (asked.section.max_concurrent or 1)
    return max(most, os.cpu_count() or 1) if asked.section.max_concurrent is None else most


def _most(asked: Search, key: str, here: int) -> int:
    domain = asked.section.space.get(key)
    return here if domain is None else max(domain.ends())


def _watch(asked: Search, runs: RunStore, alive: Callable[[], bool]) -> None:
    if notes.is_terminal:
        _draw(asked, runs, alive)
    else:
        _tell(asked, runs, alive)


def _draw(asked: Search, runs: RunStore, alive: Callable[[], bool]) -> None:
    """One table, drawn anew."""
    metric, mode = asked.section.metric, asked.section.direction
    with Live(console=notes, auto_refresh=False, vertical_overflow="visible") as shown:
        last = False
        while not last:
            last = not alive()
            shown.update(live(Diary(runs).rows, metric, mode, notes.width), refresh=True)
            if not last:
                time.sleep(TICK_S)


def _tell(asked: Search, runs: RunStore, alive: Callable[[], bool]) -> None:
    """A line when a trial starts or ends."""
    told: dict[int, str] = {}
    last = False
    while not last:
        last = not alive()
        for row in Diary(runs).rows:
            if row.status != "waiting" and told.get(row.number) != row.status:
                told[row.number] = row.status
                note(line_of(row, asked.section.metric))
        if not last:
            time.sleep(TICK_S)


def _show(asked: Search, runs: RunStore, *, json: bool) -> None:
    found = outcome(asked, runs)
    if json:
        print_json(found)
        return
    rows = Diary(runs).rows
    results.print(live(rows, asked.section.metric, asked.section.direction, results.width))
    if found["adapter"] is not None:
        results.print(f"committed {found['adapter']}")
    results.print("next:", style="bold")
    results.print(f"  .venv/bin/slora train {paper_at(runs, NEXT)}", soft_wrap=True)
    for name in (REPORT, RESULTS):
        results.print(f"  {paper_at(runs, name)}", soft_wrap=True)
