"""Run `python -m jobs.federate --spec SPEC`: train one adapter on the rows of many clients."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.federation.artifacts import pin_spec
from jobs.federation.check import check_federation
from jobs.plan.handover import validate_or_reuse
from jobs.spec.kinds import require_kind
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.run_arguments import make_run_parser
from jobs.spec.schema import FederatedSpec, make_site_spec
from jobs.store.open import open_store
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import PLAN, SPEC, RunStore, make_run_id
from jobs.train.job_main import record_failure, run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_log import log_events
from jobs.train.monitor.run_report import render_summary
from jobs.train.request import HooksFactory


def main(arguments: Sequence[str] | None = None, *, make_hooks: HooksFactory | None = None) -> int:
    """Train a federation. Exit codes: 0 done, 1 failed, 2 wrong input, 3 Ray is unreachable."""
    options = make_run_parser("jobs.federate", main.__doc__).parse_args(arguments)

    def load_and_run() -> None:
        spec = load_spec(fetch_spec(options.spec), options.set)
        federated_spec = require_kind(spec, FederatedSpec)
        now = datetime.datetime.now(datetime.UTC)
        _run_federation(
            federated_spec,
            options.run or make_run_id(federated_spec.name, now),
            options.attempt,
            make_hooks,
        )

    return run_job(load_and_run)


def _run_federation(
    federated_spec: FederatedSpec, run_id: str, attempt: int, make_hooks: HooksFactory | None
) -> None:
    site_run = validate_or_reuse(make_site_spec(federated_spec), run_id)
    validated = check_federation(federated_spec, site_run=site_run, run_id=run_id)
    # Imported after the check: wrong input is reported within a second, and nothing is started.
    from jobs.federation.federation_driver import run_federation
    from jobs.train.driver import connect_ray

    runs = RunStore(open_store(federated_spec.store), run_id)
    pin_spec(federated_spec, runs)
    runs.write_text(SPEC, dump_spec(federated_spec.training))
    runs.write_json(PLAN, validated.to_json())
    request = validated.extend_request(validated.validated_run.make_request(run_id), runs)
    print(f"run {run_id}", flush=True)
    with Heartbeat(runs, attempt), log_events(runs), record_failure(runs):
        connect_ray()
        run_federation(request, runs, attempt=attempt, make_hooks=make_hooks)
    Console(width=80).print(render_summary(runs))


if __name__ == "__main__":
    sys.exit(main())
