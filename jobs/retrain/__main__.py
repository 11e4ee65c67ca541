"""Run `python -m jobs.retrain --spec SPEC`: train on new data, promote if the gate passes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.retrain.pipeline import Retraining
from jobs.spec.schema import RetrainSpec
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.run_report import render_summary
from jobs.train.spec_job import JobRun, report_run, run_spec_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Retrain an adapter. Exit codes: 0 done, 1 failed, 2 wrong input, 3 Ray is unreachable."""
    return run_spec_job("jobs.retrain", main.__doc__, arguments, RetrainSpec, _run_retraining)


def _run_retraining(retrain_spec: RetrainSpec, run: JobRun) -> None:
    runs = RunStore(open_store(retrain_spec.store), run.id)
    pin_spec(retrain_spec, runs)
    with report_run(runs, run.attempt):
        phases = run.begin_phases(runs)
        Retraining(
            retrain_spec, runs, run.attempt, leaves_pointer=run.leaves_pointer, phases=phases
        ).run()
    Console(width=80).print(render_summary(runs))


if __name__ == "__main__":
    sys.exit(main())
