"""`slora train` of a federation: its rows dealt here once, run as the same job on a local Ray."""

from __future__ import annotations

from jobs.federate.check import FederatedChecked
from jobs.federate.papers import FEDERATION, keep_asked
from jobs.store.runs import RunStore
from orchestrator.console import note
from orchestrator.train import INTERRUPTED, new_run, show, to_end


def federate(found: FederatedChecked, *, json: bool) -> int:
    """Runs the job to its end and shows what came of it. Returns the command's exit code."""
    runs = federated_to_end(found)
    if runs is None:
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    show(runs, found.asked.spec.store, json=json)
    return 0


def federated_to_end(found: FederatedChecked) -> RunStore | None:
    """The run's papers once its job is done; None where Ctrl-C stopped it."""
    spec = found.asked.spec
    runs = new_run(spec)
    keep_asked(found.asked, runs)
    return runs if to_end("jobs.federate", FEDERATION, runs, spec) else None
