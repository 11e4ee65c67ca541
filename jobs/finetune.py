"""`python -m jobs.finetune --spec SPEC`: check, train on Ray, and print the summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rich.console import Console

from jobs.errors import TrainingFailed
from jobs.plan.dtype_choice import set_dtype
from jobs.plan.handover import validate_or_reuse
from jobs.plan.preflight import ValidatedRun
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import LEDGER, PLAN, SPEC, RunStore
from jobs.train.data.token_pass import PROGRESS_EVERY_ROWS, PassProgress
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.monitor.progress import ProgressReporter
from jobs.train.monitor.run_report import render_summary
from jobs.train.request import HooksFactory, RunAttempt
from jobs.train.spec_job import JobRun, report_run, run_spec_job


def main(arguments: Sequence[str] | None = None, *, make_hooks: HooksFactory | None = None) -> int:
    """Train one spec. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 Ray is unreachable."""
    work = partial(_fine_tune, make_hooks)
    return run_spec_job("jobs.finetune", main.__doc__, arguments, RunSpec, work)


def _fine_tune(make_hooks: HooksFactory | None, spec: RunSpec, run: JobRun) -> None:
    validated = validate_or_reuse(spec, run.id)
    runs = RunStore(open_store(validated.spec.store), run.id)
    # The first file of a run. A dtype that this machine chose is not settled yet.
    runs.write_text(SPEC, dump_spec(set_dtype(validated.spec, spec.model.dtype)))
    with report_run(runs, run.attempt):
        phases = run.begin_phases(runs)
        validated = tokenize_run(validated, progress=_make_progress(validated, runs))
        phases.end("check")
        # Imported only after the check, so that bad input is refused within a second.
        from jobs.train.cluster.settle_dtype import settle_dtype
        from jobs.train.driver import connect_ray, describe_missing_resources, train_on_ray

        with ThreadPoolExecutor(1) as hashing:
            # Reads all of the base, while Ray is joined or starts.
            digest = hashing.submit(validated.digest_base)
            connect_ray()
            validated = settle_dtype(validated, spec, runs)
            runs.write_text(SPEC, dump_spec(validated.spec))
            runs.write_json(PLAN, validated.plan.to_json())
            request = validated.make_request(run.id, base=digest.result())
        phases.end("ray")
        if (missing := describe_missing_resources(request)) is not None:
            print(f"waiting for the cluster: {missing}", flush=True)
        train_on_ray(RunAttempt(request, run.attempt, make_hooks, phases.start), runs)
    if runs.store.head(runs.key(LEDGER)) is None:
        remedy = f"Check {runs.store.url(runs.key(LEDGER))}, then run the job again."
        raise TrainingFailed("the run", "ended without writing its ledger to the store", remedy)
    Console(width=80).print(render_summary(runs))


def _make_progress(validated: ValidatedRun, runs: RunStore) -> PassProgress:
    """Return the callback that records the progress of tokenising as events."""
    rows = validated.train_scan.rows + (validated.eval_scan.rows if validated.eval_scan else 0)

    def report(done: int, _: int) -> None:
        counts = {"done": min(done * PROGRESS_EVERY_ROWS, rows), "of": rows}
        event = {"event": "progress", "time": time.time(), "what": "rows tokenised"}
        runs.events.append({**event, **counts})

    reporter = ProgressReporter(rows // PROGRESS_EVERY_ROWS, report)
    return lambda _: reporter.advance()


if __name__ == "__main__":
    sys.exit(main())
