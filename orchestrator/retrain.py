"""`slora train` of a retraining: looked at here, run as the same job on a local Ray."""

from __future__ import annotations

from jobs.preflight import Checked
from jobs.report import outcome, summary
from jobs.retrain.door import Retrain
from jobs.retrain.look import NothingNew, look
from jobs.retrain.papers import RETRAIN, keep_asked
from jobs.store.objects import open_store
from orchestrator.console import note, print_json, results
from orchestrator.train import INTERRUPTED, new_run, next_commands, to_end


def retrain(asked: Retrain, checked: Checked, *, json: bool) -> int:
    """Runs the job to its decision and shows it; nothing new starts nothing. The exit code."""
    spec = checked.spec
    sha256 = str(checked.train.sha256)
    found = look(open_store(spec.store), spec, asked.section.start, sha256)
    if isinstance(found, NothingNew):
        return _nothing_new(found, json=json)
    runs = new_run(spec)
    keep_asked(asked, runs)
    if not to_end("jobs.retrain", RETRAIN, runs, spec):
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    told = outcome(runs)
    if json:
        print_json(told)
        return 0
    results.print(summary(runs))
    if "adapter" in told:
        next_commands(told, spec.store)
    return 0


def _nothing_new(found: NothingNew, *, json: bool) -> int:
    if json:
        decision = {"event": "nothing new", "adapter": found.adapter, "why": found.why}
        print_json({"decision": decision})
    else:
        results.print(f"nothing new: {found.why}")
    return 0
