"""`slora plan`, `train` and `search`: a spec is checked, planned, and run on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from jobs.data.survey import Progress
from jobs.ended import not_installed
from jobs.federate.check import check_federated
from jobs.federate.door import Federated, is_federated, load_federated
from jobs.preflight import Checked, absolute, check
from jobs.retrain.door import Retrain, is_retrain, load_retrain
from jobs.search.door import load_search
from jobs.spec import Spec
from jobs.spec_file import load_spec, read_raw
from orchestrator import plan_table
from orchestrator.commands.options import Json, Overrides, SpecFile
from orchestrator.console import LongWork, notes, print_json, say
from orchestrator.retrain_plan import plan_of

app = typer.Typer()
Found = TypeVar("Found")


@app.command()
def plan(
    spec: SpecFile,
    set: Overrides = None,
    workers: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    json: Json = False,
) -> None:
    """What a run would train, hold, send, take and cost; nothing is started."""
    asked = [*(set or ()), *([f"cluster.workers={workers}"] if workers is not None else [])]
    raw = read_raw(spec, asked)
    if is_federated(raw):
        _plan_federation(load_federated(spec, asked), json=json)
        return
    if is_retrain(raw):
        _plan_retraining(load_retrain(spec, asked), json=json)
        return
    checked = check(absolute(load_spec(spec, asked)), quick=True)
    if json:
        print_json(checked.plan.to_json())
    else:
        plan_table.show(checked)


@app.command()
def train(spec: SpecFile, set: Overrides = None, json: Json = False) -> None:
    """Run a fine-tune, retraining or federation here: on a local Ray, or one started for it."""
    raw = read_raw(spec, set or [])
    if is_federated(raw):
        raise typer.Exit(_federate(load_federated(spec, set or []), json=json))
    asked = load_retrain(spec, set or []) if is_retrain(raw) else None
    checked = _checked(asked.spec if asked else absolute(load_spec(spec, set or [])))
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.retrain import retrain
        from orchestrator.train import train as run
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    if asked is not None:
        raise typer.Exit(retrain(asked, checked, json=json))
    raise typer.Exit(run(checked, json=json))


@app.command()
def search(
    spec: SpecFile,
    set: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="A search that was interrupted.")] = None,
    json: Json = False,
) -> None:
    """Search for the best adapter here: a spec with a search: section, on a local Ray."""
    asked = load_search(spec, set or [])
    _checked(asked.spec)
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.search import search as run
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    raise typer.Exit(run(asked, resume=resume, json=json))


def _plan_retraining(asked: Retrain, *, json: bool) -> None:
    checked, start = plan_of(asked)
    if json:
        print_json({**checked.plan.to_json(), "retrain": start})
        return
    plan_table.show(checked)
    say(start)


def _plan_federation(asked: Federated, *, json: bool) -> None:
    found = check_federated(asked, quick=True)
    if json:
        print_json(found.to_json())
        return
    plan_table.show(found.checked, found.plan)


def _federate(asked: Federated, *, json: bool) -> int:
    found = _with_bar(lambda progress: check_federated(asked, progress=progress))
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.federate import federate
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    return federate(found, json=json)


def _checked(loaded: Spec) -> Checked:
    return _with_bar(lambda progress: check(loaded, progress=progress))


def _with_bar(checking: Callable[[Progress | None], Found]) -> Found:
    """The check before a run, with a bar where the data take long."""
    work: LongWork | None = None
    seen = 0

    def progress(_: int, done: int, total: int) -> None:
        nonlocal work, seen
        if work is None or done < seen:
            work, seen = LongWork("Checking the data", total), 0
        work.advance(done - seen)
        seen = done

    try:
        return checking(progress if notes.is_terminal else None)
    finally:
        if work is not None:
            work.__exit__(None, None, None)
