"""`python -m jobs.finetune --spec SPEC`: check, train on Ray, and print the summary."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.errors import TrainingFailed
from jobs.plan.handover import validate_or_reuse
from jobs.plan.preflight import ValidatedRun
from jobs.spec.kinds import require_kind
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.run_arguments import make_run_parser
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import LEDGER, PLAN, SPEC, RunStore, make_run_id
from jobs.train.job_main import record_failure, run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_log import log_events
from jobs.train.monitor.run_report import render_summary
from jobs.train.request import HooksFactory


def main(arguments: Sequence[str] | None = None, *, make_hooks: HooksFactory | None = None) -> int:
    """Train one spec. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 Ray is unreachable."""
    options = make_run_parser("jobs.finetune", main.__doc__).parse_args(arguments)

    def work() -> None:
        spec = require_kind(load_spec(fetch_spec(options.spec), options.set), RunSpec)
        run_id = options.run or make_run_id(spec.name, datetime.datetime.now(datetime.UTC))
        _run_validated(validate_or_reuse(spec, run_id), run_id, options.attempt, make_hooks)

    return run_job(work)


def _run_validated(
    validated: ValidatedRun, run_id: str, attempt: int, make_hooks: HooksFactory | None
) -> None:
    # Import Ray and torch only after the check, so that bad input is refused within a second.
    from jobs.train.driver import connect_ray, describe_missing_resources, train_on_ray

    runs = RunStore(open_store(validated.spec.store), run_id)
    runs.write_text(SPEC, dump_spec(validated.spec))
    runs.write_json(PLAN, validated.plan.to_json())
    request = validated.make_request(run_id)
    print(f"run {run_id}", flush=True)
    with Heartbeat(runs, attempt), log_events(runs), record_failure(runs):
        connect_ray()
        if (missing := describe_missing_resources(request)) is not None:
            print(f"waiting for the cluster: {missing}", flush=True)
        train_on_ray(request, runs, attempt=attempt, make_hooks=make_hooks)
    if runs.store.head(runs.key(LEDGER)) is None:
        remedy = f"Check {runs.store.url(runs.key(LEDGER))}, then run the job again."
        raise TrainingFailed("the run", "ended without writing its ledger to the store", remedy)
    Console(width=80).print(render_summary(runs))


if __name__ == "__main__":
    sys.exit(main())
