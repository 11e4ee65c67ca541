"""`slora report`, `audit` and `reproduce`: what a run came to, by the papers that it left."""

from __future__ import annotations

from math import inf

import typer

from jobs.ended import not_installed
from jobs.report import outcome, summary
from jobs.store.objects import open_store
from jobs.store.runs import LEDGER, PLAN, RunStore
from orchestrator import audit_table, upkeep
from orchestrator.audit import audit as compared
from orchestrator.audit import broken
from orchestrator.commands.options import DEFAULT_STORE, Json, RunId, Store, Wanted
from orchestrator.console import print_json, results
from orchestrator.reproduce import reproduce as reproduce_again

app = typer.Typer()


@app.command()
def report(
    run: RunId,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """What a run came to, from its own papers."""
    runs = RunStore(open_store(store), run)
    runs.read_text("spec.yaml")
    if json:
        print_json(outcome(runs))
    else:
        results.print(summary(runs))


@app.command()
def audit(
    run: RunId,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """A run's plan beside its ledger, line by line; exit code 1 where a promise is broken."""
    runs = RunStore(open_store(store), run)
    lines = compared(run, runs.read_json(PLAN), runs.read_json(LEDGER))
    if json:
        print_json(audit_table.described(run, lines))
    else:
        audit_table.show(run, lines)
    if broken(lines):
        raise typer.Exit(1)


@app.command()
def reproduce(name: Wanted, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Run an adapter's run again from its own papers, and compare what comes out."""
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.federate import federated_to_end
        from orchestrator.train import INTERRUPTED, run_to_end
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    found = reproduce_again(
        open_store(store),
        name,
        lambda spec: run_to_end(spec) is not None,
        lambda asked: federated_to_end(asked) is not None,
    )
    if found is None:
        raise typer.Exit(INTERRUPTED)
    different = {name: None if apart == inf else apart for name, apart in found.different.items()}
    if json:
        plain = {"adapter": found.adapter, "same": found.same, "equal": found.equal}
        limits = {"tolerance": found.tolerance, "code": found.code}
        print_json({**plain, "different": different, **limits})
    else:
        upkeep.show_reproduced(found)
    if not found.same:
        raise typer.Exit(1)
