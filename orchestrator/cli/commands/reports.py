"""`slora report`, `audit` and `reproduce`: the outcome of a run, from the files it left."""

from __future__ import annotations

from math import inf

import typer

from jobs.plan.audit import compare_with_plan, list_violations
from jobs.store.open import open_store
from jobs.store.runs.run_store import LEDGER, PLAN, RunStore
from jobs.train.job_main import require_extra
from jobs.train.monitor.run_report import collect_outcome, render_summary
from orchestrator.cli import adapter_maintenance
from orchestrator.cli.console import out_console, print_json
from orchestrator.cli.options import DEFAULT_STORE, AdapterName, Json, RunId, Store
from orchestrator.cli.render import audit_table
from orchestrator.cli.reproduce import repeat_run

app = typer.Typer()


@app.command()
def report(
    run: RunId,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Show the outcome of a run, from its files in the store."""
    run_store = RunStore(open_store(store), run)
    run_store.read_text("spec.yaml")
    if json:
        print_json(collect_outcome(run_store))
    else:
        out_console.print(render_summary(run_store))


@app.command("audit")
def run_audit(
    run: RunId,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Compare a run's plan with its ledger; exit with 1 if a tolerance is exceeded."""
    run_store = RunStore(open_store(store), run)
    lines = compare_with_plan(run, run_store.read_json(PLAN), run_store.read_json(LEDGER))
    if json:
        print_json(audit_table.dump_audit(run, lines))
    else:
        audit_table.show_audit(run, lines)
    if list_violations(lines):
        raise typer.Exit(1)


@app.command("reproduce")
def repeat_run_command(name: AdapterName, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Repeat the run of an adapter from its recorded spec, and compare the results."""
    # Ray takes half a second to import, and most commands need none.
    with require_extra():
        from orchestrator.cli.local_run import INTERRUPTED, run_to_end
    reproduction = repeat_run(
        open_store(store),
        name,
        lambda spec, validated, files: run_to_end(spec, validated, files=files) is not None,
    )
    if reproduction is None:
        raise typer.Exit(INTERRUPTED)
    differences = {
        name: None if difference == inf else difference
        for name, difference in reproduction.differences.items()
    }
    if json:
        values = {
            "adapter": reproduction.adapter,
            "same": reproduction.is_same,
            "equal": reproduction.equal_files,
        }
        limits = {"tolerance": reproduction.tolerance, "code": reproduction.code_versions}
        print_json({**values, "different": differences, **limits})
    else:
        adapter_maintenance.show_reproduction(reproduction)
    if not reproduction.is_same:
        raise typer.Exit(1)
