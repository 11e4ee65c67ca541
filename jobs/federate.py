"""Run `python -m jobs.federate --spec SPEC`: train one adapter on the rows of many clients."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from jobs.federation.check import check_federation
from jobs.plan.handover import validate_or_reuse
from jobs.spec.load import dump_spec
from jobs.spec.schema import FederatedSpec, make_site_spec
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import PLAN, SPEC, RunStore
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.monitor.run_report import render_summary
from jobs.train.request import HooksFactory
from jobs.train.spec_job import JobRun, report_run, run_spec_job


def main(arguments: Sequence[str] | None = None, *, make_hooks: HooksFactory | None = None) -> int:
    """Train a federation. Exit codes: 0 done, 1 failed, 2 wrong input, 3 Ray is unreachable."""
    work = partial(_run_federation, make_hooks)
    return run_spec_job("jobs.federate", main.__doc__, arguments, FederatedSpec, work)


def _run_federation(
    make_hooks: HooksFactory | None, federated_spec: FederatedSpec, run: JobRun
) -> None:
    site_run = tokenize_run(validate_or_reuse(make_site_spec(federated_spec), run.id))
    validated = check_federation(federated_spec, site_run=site_run, run_id=run.id)
    runs = RunStore(open_store(federated_spec.store), run.id)
    pin_spec(federated_spec, runs)
    runs.write_text(SPEC, dump_spec(federated_spec.training))
    with report_run(runs, run.attempt):
        phases = run.begin_phases(runs)
        phases.end("check")
        # Imported after the check: wrong input is reported within a second, and nothing is started.
        from jobs.federation.federation_driver import run_federation
        from jobs.train.cluster.settle_dtype import settle_dtype
        from jobs.train.driver import connect_ray

        connect_ray()
        settled = settle_dtype(site_run, federated_spec, runs)
        if settled is not site_run:
            validated = check_federation(federated_spec, site_run=settled, run_id=run.id)
        runs.write_text(SPEC, dump_spec(validated.federated_spec.training))
        runs.write_json(PLAN, validated.to_json())
        request = validated.extend_request(validated.validated_run.make_request(run.id), runs)
        phases.end("ray")
        run_federation(
            request, runs, attempt=run.attempt, make_hooks=make_hooks, start=phases.start
        )
    Console(width=80).print(render_summary(runs))


if __name__ == "__main__":
    sys.exit(main())
