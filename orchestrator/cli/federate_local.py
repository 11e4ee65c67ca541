"""`slora train` of a federation: its rows dealt here once, run as the same job on a local Ray."""

from __future__ import annotations

from jobs.federation.artifacts import FEDERATION_FILE, pin_spec
from jobs.federation.check import ValidatedFederation
from jobs.plan.handover import write_validated
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.console import note
from orchestrator.cli.local_run import INTERRUPTED, create_run, run_spec_job, show_outcome


def run_federation(checked: ValidatedFederation, *, json: bool) -> int:
    """Runs the job to its end and shows what came of it. Returns the command's exit code."""
    run_store = run_federation_job(checked)
    if run_store is None:
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    show_outcome(run_store, checked.federated_spec.store, json=json)
    return 0


def run_federation_job(checked: ValidatedFederation) -> RunStore | None:
    """The run's papers once its job is done; None where Ctrl-C stopped it."""
    spec = checked.federated_spec
    run_store = create_run(spec)
    pin_spec(checked.federated_spec, run_store)
    write_validated(checked.site_run, run_store)
    return run_store if run_spec_job("jobs.federate", FEDERATION_FILE, run_store, spec) else None
