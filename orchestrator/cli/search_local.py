"""The display of a search on a local Ray: its trials while it runs, and its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from rich.live import Live

from jobs.search.report.live_table import format_trial, render_table
from jobs.search.search_artifacts import NEXT_SPEC_FILE, REPORT_FILE, RESULTS_FILE, build_summary
from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.spec.schema import SearchSpec
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.console import err_console, note, out_console, print_json
from orchestrator.cli.local_job import locate_run_file

POLL_S = 0.5


def count_search_cpus(spec: SearchSpec) -> int:
    """Return the CPUs of a Ray started for the search: this machine's, and at least one trial's."""
    trial_cpus = _find_maximum(spec, "cluster.workers", spec.workers)
    trial_cpus *= _find_maximum(spec, "cluster.cpus_per_worker", spec.cluster.cpus_per_worker)
    if spec.section.max_concurrent is None:
        return max(trial_cpus, os.cpu_count() or 1)
    return trial_cpus * spec.section.max_concurrent


def watch_search(spec: SearchSpec, run_store: RunStore, is_alive: Callable[[], bool]) -> None:
    """Show the trials until the job ends: a live table in a terminal, lines elsewhere."""
    show = _draw_table if err_console.is_terminal else _print_changes
    show(spec, _poll_trials(run_store, is_alive))


def show_search(spec: SearchSpec, run_store: RunStore, *, json: bool) -> None:
    """Print the search's result, and the commands and files that follow from it."""
    summary = build_summary(spec, run_store)
    if json:
        print_json(summary)
        return
    records, section = TrialLog(run_store).records, spec.section
    table = render_table(records, section.metric, section.direction, out_console.width)
    out_console.print(table)
    if summary["adapter"] is not None:
        out_console.print(f"committed {summary['adapter']}")
    out_console.print("next:", style="bold")
    next_spec = locate_run_file(run_store, NEXT_SPEC_FILE)
    out_console.print(f"  slora train {next_spec}", soft_wrap=True)
    for name in (REPORT_FILE, RESULTS_FILE):
        out_console.print(f"  {locate_run_file(run_store, name)}", soft_wrap=True)


def _find_maximum(spec: SearchSpec, key: str, default: int) -> int:
    domain = spec.section.space.get(key)
    return default if domain is None else max(domain.list_ends())


def _poll_trials(
    run_store: RunStore, is_alive: Callable[[], bool]
) -> Iterator[Sequence[TrialRecord]]:
    """Yield the trials again and again, the last time after the job has ended."""
    while True:
        last = not is_alive()
        yield TrialLog(run_store).records
        if last:
            return
        time.sleep(POLL_S)


def _draw_table(spec: SearchSpec, polls: Iterator[Sequence[TrialRecord]]) -> None:
    metric, mode = spec.section.metric, spec.section.direction
    with Live(console=err_console, auto_refresh=False, vertical_overflow="visible") as display:
        for records in polls:
            display.update(render_table(records, metric, mode, err_console.width), refresh=True)


def _print_changes(spec: SearchSpec, polls: Iterator[Sequence[TrialRecord]]) -> None:
    """Print a line when a trial starts or ends."""
    printed: dict[int, str] = {}
    for records in polls:
        for record in records:
            if record.status != "waiting" and printed.get(record.number) != record.status:
                printed[record.number] = record.status
                note(format_trial(record, spec.section.metric))
