"""`slora search`: the same job that `ray job submit` runs, on a local Ray, its table drawn live."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.live import Live

from jobs.plan.handover import write_validated
from jobs.plan.preflight import ValidatedRun
from jobs.search.report.live_table import format_trial, render_table
from jobs.search.search_artifacts import (
    NEXT_SPEC_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    SEARCH_FILE,
    build_summary,
    pin_search,
)
from jobs.search.trial_log import TrialLog
from jobs.spec.schema import SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore, make_run_id
from orchestrator.cli.console import err_console, note, out_console, print_json
from orchestrator.cli.local_run import INTERRUPTED, locate_run_file, run_local_job

POLL_S = 0.5


def run_search(
    search_spec: SearchSpec, checked: ValidatedRun, *, resume: str | None, json: bool
) -> int:
    """Runs the search to its end and shows what it found. Returns the job's exit code."""
    run_id = resume or make_run_id(f"{search_spec.name[:40]}-search", datetime.now(UTC))
    run_store = RunStore(open_store(search_spec.store), run_id)
    pin_search(search_spec, run_store, resumed=resume is not None)
    write_validated(checked, run_store)
    note(f"search {run_id}")
    arguments = ["jobs.search", "--spec", locate_run_file(run_store, SEARCH_FILE)]
    arguments += ["--resume" if resume else "--run", run_id]
    finished = run_local_job(
        arguments,
        run_store,
        job_id=f"{run_id}-{secrets.token_hex(2)}",
        cpus=_count_cpus(search_spec),
        watch=lambda is_alive: _watch(search_spec, run_store, is_alive),
    )
    if not finished:
        note(f"stopped; nothing of it runs on, and `slora search SPEC --resume {run_id}` goes on")
        return INTERRUPTED
    _show_result(search_spec, run_store, json=json)
    return 0


def _count_cpus(search_spec: SearchSpec) -> int:
    """For a Ray that is started for it: this machine's, and at least one trial's."""
    trial_cpus = _find_maximum(search_spec, "cluster.workers", search_spec.workers)
    trial_cpus *= _find_maximum(
        search_spec, "cluster.cpus_per_worker", search_spec.cluster.cpus_per_worker
    )
    total_cpus = trial_cpus * (search_spec.section.max_concurrent or 1)
    return (
        max(total_cpus, os.cpu_count() or 1)
        if search_spec.section.max_concurrent is None
        else total_cpus
    )


def _find_maximum(search_spec: SearchSpec, key: str, default: int) -> int:
    domain = search_spec.section.space.get(key)
    return default if domain is None else max(domain.list_ends())


def _watch(search_spec: SearchSpec, run_store: RunStore, is_alive: Callable[[], bool]) -> None:
    if err_console.is_terminal:
        _draw_table(search_spec, run_store, is_alive)
    else:
        _print_changes(search_spec, run_store, is_alive)


def _draw_table(search_spec: SearchSpec, run_store: RunStore, is_alive: Callable[[], bool]) -> None:
    """One table, drawn anew."""
    metric, mode = search_spec.section.metric, search_spec.section.direction
    with Live(console=err_console, auto_refresh=False, vertical_overflow="visible") as display:
        last = False
        while not last:
            last = not is_alive()
            display.update(
                render_table(TrialLog(run_store).records, metric, mode, err_console.width),
                refresh=True,
            )
            if not last:
                time.sleep(POLL_S)


def _print_changes(
    search_spec: SearchSpec, run_store: RunStore, is_alive: Callable[[], bool]
) -> None:
    """A line when a trial starts or ends."""
    printed: dict[int, str] = {}
    last = False
    while not last:
        last = not is_alive()
        for row in TrialLog(run_store).records:
            if row.status != "waiting" and printed.get(row.number) != row.status:
                printed[row.number] = row.status
                note(format_trial(row, search_spec.section.metric))
        if not last:
            time.sleep(POLL_S)


def _show_result(search_spec: SearchSpec, run_store: RunStore, *, json: bool) -> None:
    result = build_summary(search_spec, run_store)
    if json:
        print_json(result)
        return
    rows = TrialLog(run_store).records
    out_console.print(
        render_table(
            rows, search_spec.section.metric, search_spec.section.direction, out_console.width
        )
    )
    if result["adapter"] is not None:
        out_console.print(f"committed {result['adapter']}")
    out_console.print("next:", style="bold")
    out_console.print(
        f"  .venv/bin/slora train {locate_run_file(run_store, NEXT_SPEC_FILE)}", soft_wrap=True
    )
    for name in (REPORT_FILE, RESULTS_FILE):
        out_console.print(f"  {locate_run_file(run_store, name)}", soft_wrap=True)
