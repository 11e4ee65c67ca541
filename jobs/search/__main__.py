"""Entry point of a search job on Ray: `python -m jobs.search --spec SPEC`."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from jobs.places.boundary import check_spec
from jobs.plan.dtype_choice import set_dtype
from jobs.plan.handover import validate_or_reuse
from jobs.plan.preflight import ValidatedRun
from jobs.search.report.live_table import format_trial, render_table
from jobs.search.report.pareto import find_best
from jobs.search.search_artifacts import (
    NEXT_SPEC_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    pin_search,
    write_results,
)
from jobs.search.space import list_precomputed_configs
from jobs.search.trial_log import TrialLog
from jobs.search.trial_plan import TrialPlanner
from jobs.search.trial_record import TrialRecord
from jobs.spec.kinds import require_kind
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.run_arguments import make_run_parser
from jobs.spec.schema import SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import SPEC, RunStore, make_run_id
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.job_main import record_failure, run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.phases import PhaseClock, begin_job_phases


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a search. Exit: 0 done, 1 no trial succeeded, 2 invalid input, 3 Ray unreachable."""
    parser = make_run_parser("jobs.search", main.__doc__)
    parser.add_argument("--resume", metavar="RUN", help="Resume an interrupted search.")
    options = parser.parse_args(arguments)
    return run_job(lambda: _run_search(options))


def _run_search(options: argparse.Namespace) -> None:
    search = require_kind(load_spec(fetch_spec(options.spec), options.set), SearchSpec)
    check_spec(search)
    now = datetime.datetime.now(datetime.UTC)
    run_id = options.resume or options.run or make_run_id(f"{search.name}-search"[:40], now)
    validated = tokenize_run(validate_or_reuse(search, run_id))
    planner = _make_planner(search, validated, run_id)
    if (configs := list_precomputed_configs(search.section)) is not None:
        planner.check_feasible(configs)
    runs = RunStore(open_store(validated.spec.store), run_id)
    pin_search(search, runs, resumed=options.resume is not None)
    runs.write_text(SPEC, dump_spec(validated.spec))
    trial_log = TrialLog(runs)
    print(f"search {run_id}", flush=True)
    phases = begin_job_phases(
        runs.phase_events, options.attempt, submitted=options.submitted, checked=options.checked
    )
    phases.end("check")
    with Heartbeat(runs, options.attempt):
        _search_and_publish(search, validated, planner, runs, trial_log, options.attempt, phases)


def _make_planner(search: SearchSpec, validated: ValidatedRun, run_id: str) -> TrialPlanner:
    """Return the planner of trials in the dtype of the default trial, unless they set another."""
    return TrialPlanner(set_dtype(search, validated.spec.model.dtype), validated, run=run_id)


def _search_and_publish(
    search: SearchSpec,
    validated: ValidatedRun,
    planner: TrialPlanner,
    runs: RunStore,
    trial_log: TrialLog,
    attempt: int,
    phases: PhaseClock,
) -> None:
    # Ray is imported after the checks: invalid input fails in a second and starts nothing.
    from jobs.search.driver import publish_best, run_trials
    from jobs.train.cluster.settle_dtype import settle_dtype
    from jobs.train.driver import connect_ray

    def print_trial(record: TrialRecord) -> None:
        print(format_trial(record, search.section.metric), flush=True)

    connect_ray()
    settled = settle_dtype(validated, search, runs)
    if settled.spec != validated.spec:
        runs.write_text(SPEC, dump_spec(settled.spec))
        planner = _make_planner(search, settled, runs.run_id)
    search = set_dtype(search, settled.spec.model.dtype)
    phases.end("ray")
    try:
        with record_failure(runs):
            run_trials(search, planner, runs, trial_log, print_trial)
            best_trial = find_best(trial_log.records, search.section.direction)
            adapter = None
            if best_trial is not None:
                adapter = publish_best(planner, best_trial, attempt=attempt)
    finally:
        write_results(search, runs, trial_log)
    if adapter is not None:
        event = {"event": "published", "time": time.time(), "adapter": adapter}
        runs.events.append(event)
    _print_summary(search, runs, trial_log, adapter)


def _print_summary(
    search: SearchSpec, runs: RunStore, trial_log: TrialLog, adapter: str | None
) -> None:
    console = Console(width=80, highlight=False)
    console.print(render_table(trial_log.records, search.section.metric, search.section.direction))
    if adapter is not None:
        console.print(f"committed {adapter}")
    for name in (NEXT_SPEC_FILE, RESULTS_FILE, REPORT_FILE):
        console.print(runs.store.url(runs.key(name)), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
