"""`slora train` of a retraining: looked at here, run as the same job on a local Ray."""

from __future__ import annotations

from jobs.plan.handover import write_validated
from jobs.plan.preflight import ValidatedRun
from jobs.retrain.detect import NoNewData, snapshot_state
from jobs.retrain.retrain_artifacts import RETRAIN_FILE, pin_spec
from jobs.spec.schema import RetrainSpec
from jobs.store.open import open_store
from jobs.train.monitor.run_report import collect_outcome, render_summary
from orchestrator.cli.console import note, out_console, print_json
from orchestrator.cli.local_run import INTERRUPTED, create_run, print_next_commands, run_spec_job


def run_retraining(retraining: RetrainSpec, checked: ValidatedRun, *, json: bool) -> int:
    """Runs the job to its decision and shows it; nothing new starts nothing. The exit code."""
    spec = checked.spec
    sha256 = str(checked.train_scan.sha256)
    state = snapshot_state(open_store(spec.store), spec, retraining.section.start, sha256)
    if isinstance(state, NoNewData):
        return _show_nothing_new(state, json=json)
    run_store = create_run(spec)
    pin_spec(retraining, run_store)
    write_validated(checked, run_store)
    if not run_spec_job("jobs.retrain", RETRAIN_FILE, run_store, spec):
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    result = collect_outcome(run_store)
    if json:
        print_json(result)
        return 0
    out_console.print(render_summary(run_store))
    if "adapter" in result:
        print_next_commands(result, spec.store)
    return 0


def _show_nothing_new(state: NoNewData, *, json: bool) -> int:
    if json:
        decision = {"event": "nothing new", "adapter": state.adapter, "why": state.reason}
        print_json({"decision": decision})
    else:
        out_console.print(f"nothing new: {state.reason}")
    return 0
