"""Run `python -m jobs.retrain --spec SPEC`: train on new data, promote if the gate passes."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.retrain.pipeline import Retraining
from jobs.retrain.retrain_artifacts import pin_spec
from jobs.spec.kinds import require_kind
from jobs.spec.load import load_spec
from jobs.spec.run_arguments import make_run_parser
from jobs.spec.schema import RetrainSpec
from jobs.store.open import open_store
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import RunStore, make_run_id
from jobs.train.job_main import record_failure, run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_log import log_events
from jobs.train.monitor.run_report import render_summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Retrain an adapter. Exit codes: 0 done, 1 failed, 2 wrong input, 3 Ray is unreachable."""
    options = make_run_parser("jobs.retrain", main.__doc__).parse_args(arguments)

    def load_and_run() -> None:
        spec = load_spec(fetch_spec(options.spec), options.set)
        retrain_spec = require_kind(spec, RetrainSpec)
        now = datetime.datetime.now(datetime.UTC)
        _run_retraining(
            retrain_spec, options.run or make_run_id(retrain_spec.name, now), options.attempt
        )

    return run_job(load_and_run)


def _run_retraining(retrain_spec: RetrainSpec, run_id: str, attempt: int) -> None:
    runs = RunStore(open_store(retrain_spec.store), run_id)
    print(f"run {run_id}", flush=True)
    pin_spec(retrain_spec, runs)
    with Heartbeat(runs, attempt), log_events(runs), record_failure(runs):
        Retraining(retrain_spec, runs, attempt).run()
    Console(width=80).print(render_summary(runs))


if __name__ == "__main__":
    sys.exit(main())
