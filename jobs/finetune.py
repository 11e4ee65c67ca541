"""`python -m jobs.finetune --spec SPEC`: check, train on Ray, and print the summary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from jobs.errors import TrainingFailed
from jobs.plan.handover import validate_or_reuse
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import LEDGER, PLAN, SPEC, RunStore
from jobs.train.monitor.run_report import render_summary
from jobs.train.request import HooksFactory
from jobs.train.spec_job import report_run, run_spec_job


def main(arguments: Sequence[str] | None = None, *, make_hooks: HooksFactory | None = None) -> int:
    """Train one spec. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 Ray is unreachable."""
    work = partial(_fine_tune, make_hooks)
    return run_spec_job("jobs.finetune", main.__doc__, arguments, RunSpec, work)


def _fine_tune(make_hooks: HooksFactory | None, spec: RunSpec, run_id: str, attempt: int) -> None:
    validated = validate_or_reuse(spec, run_id)
    # Import Ray and torch only after the check, so that bad input is refused within a second.
    from jobs.train.driver import connect_ray, describe_missing_resources, train_on_ray

    runs = RunStore(open_store(validated.spec.store), run_id)
    runs.write_text(SPEC, dump_spec(validated.spec))
    runs.write_json(PLAN, validated.plan.to_json())
    request = validated.make_request(run_id)
    with report_run(runs, attempt):
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
