"""`slora plan`, `train` and `search`: a spec is checked, planned, and run on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from jobs.federation.check import check_federation
from jobs.inspect.datasets.scan import ScanProgress
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.kinds import get_kind, require_kind
from jobs.spec.load import load_spec
from jobs.spec.schema import FederatedSpec, RetrainSpec, RunSpec, SearchSpec
from jobs.train.job_main import translate_import_error
from orchestrator.cli.console import LazyProgressBar, err_console, note, print_json, print_line
from orchestrator.cli.options import Json, Overrides, SpecFile
from orchestrator.cli.render import plan_table
from orchestrator.cli.retrain_plan import plan_retraining

app = typer.Typer()
CheckedT = TypeVar("CheckedT")


@app.command()
def plan(
    spec: SpecFile,
    set: Overrides = None,
    workers: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    json: Json = False,
) -> None:
    """Show what a run would train, hold, send, take and cost, without starting it."""
    overrides = [*(set or ()), *([f"cluster.workers={workers}"] if workers is not None else [])]
    run_spec = load_spec(spec, overrides)
    if isinstance(run_spec, FederatedSpec):
        _plan_federation(run_spec, json=json)
        return
    if isinstance(run_spec, RetrainSpec):
        _plan_retraining(run_spec, json=json)
        return
    checked = validate_run(run_spec, quick=True)
    if json:
        print_json(checked.plan.to_json())
    else:
        plan_table.show_plan(checked)


@app.command()
def train(spec: SpecFile, set: Overrides = None, json: Json = False) -> None:
    """Run a spec of any kind here: on a local Ray, or on one started for it."""
    raise typer.Exit(_run(load_spec(spec, set or []), resume=None, json=json))


@app.command()
def search(
    spec: SpecFile,
    set: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="Id of an interrupted search.")] = None,
    json: Json = False,
) -> None:
    """Search for the best adapter here, or run a spec of another kind, on a local Ray."""
    run_spec = load_spec(spec, set or [])
    if resume is not None:
        require_kind(run_spec, SearchSpec)
    raise typer.Exit(_run(run_spec, resume=resume, json=json))


def _run(spec: RunSpec, *, resume: str | None, json: bool) -> int:
    """Run a spec of any kind to its end, and return the exit code of the command."""
    if isinstance(spec, FederatedSpec):
        return _run_federation(spec, json=json)
    checked = _check_spec(spec)
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.cli.local_run import run_training
        from orchestrator.cli.retrain_local import run_retraining
        from orchestrator.cli.search_local import run_search
    except ModuleNotFoundError as error:
        raise translate_import_error(error) from error
    note(f"{spec.name} is {get_kind(spec).noun}")
    if isinstance(spec, SearchSpec):
        return run_search(spec, checked, resume=resume, json=json)
    if isinstance(spec, RetrainSpec):
        return run_retraining(spec, checked, json=json)
    return run_training(checked, json=json)


def _plan_retraining(retraining: RetrainSpec, *, json: bool) -> None:
    checked, start = plan_retraining(retraining)
    if json:
        print_json({**checked.plan.to_json(), "retrain": start})
        return
    plan_table.show_plan(checked)
    print_line(start)


def _plan_federation(federation: FederatedSpec, *, json: bool) -> None:
    checked = check_federation(federation, quick=True)
    if json:
        print_json(checked.to_json())
        return
    plan_table.show_plan(checked.validated_run, checked.plan)


def _run_federation(federation: FederatedSpec, *, json: bool) -> int:
    checked = _run_with_bar(lambda progress: check_federation(federation, progress=progress))
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.cli.federate_local import run_federation
    except ModuleNotFoundError as error:
        raise translate_import_error(error) from error
    note(f"{federation.name} is {get_kind(federation).noun}")
    return run_federation(checked, json=json)


def _check_spec(spec: RunSpec) -> ValidatedRun:
    return _run_with_bar(lambda progress: validate_run(spec, progress=progress))


def _run_with_bar(run_check: Callable[[ScanProgress | None], CheckedT]) -> CheckedT:
    """The check before a run, with a bar where the data take long."""
    work: LazyProgressBar | None = None
    reported = 0

    def report_progress(_: int, done: int, total: int) -> None:
        nonlocal work, reported
        if work is None or done < reported:
            work, reported = LazyProgressBar("Checking the data", total), 0
        work.advance(done - reported)
        reported = done

    try:
        return run_check(report_progress if err_console.is_terminal else None)
    finally:
        if work is not None:
            work.__exit__(None, None, None)
