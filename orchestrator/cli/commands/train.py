"""`slora plan`, `train` and `search`: a spec is checked, planned, and run on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from jobs.federation.check import check_federation
from jobs.federation.load_federation import FederatedSpec, is_federated, load_federated
from jobs.inspect.datasets.scan import ScanProgress
from jobs.plan.preflight import ValidatedRun, make_paths_absolute, validate_run
from jobs.retrain.load_retrain import RetrainSpec, is_retrain, load_retrain
from jobs.search.load_search import load_search
from jobs.spec.load import load_spec, read_raw_spec
from jobs.spec.schema import RunSpec
from jobs.train.job_main import translate_import_error
from orchestrator.cli.console import LazyProgressBar, err_console, print_json, print_line
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
    """What a run would train, hold, send, take and cost; nothing is started."""
    overrides = [*(set or ()), *([f"cluster.workers={workers}"] if workers is not None else [])]
    raw = read_raw_spec(spec, overrides)
    if is_federated(raw):
        _plan_federation(load_federated(spec, overrides), json=json)
        return
    if is_retrain(raw):
        _plan_retraining(load_retrain(spec, overrides), json=json)
        return
    checked = validate_run(make_paths_absolute(load_spec(spec, overrides)), quick=True)
    if json:
        print_json(checked.plan.to_json())
    else:
        plan_table.show_plan(checked)


@app.command()
def train(spec: SpecFile, set: Overrides = None, json: Json = False) -> None:
    """Run a fine-tune, retraining or federation here: on a local Ray, or one started for it."""
    raw = read_raw_spec(spec, set or [])
    if is_federated(raw):
        raise typer.Exit(_run_federation(load_federated(spec, set or []), json=json))
    retraining = load_retrain(spec, set or []) if is_retrain(raw) else None
    checked = _check_spec(
        retraining.spec if retraining else make_paths_absolute(load_spec(spec, set or []))
    )
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.cli.local_run import run_training as run
        from orchestrator.cli.retrain_local import run_retraining
    except ModuleNotFoundError as error:
        raise translate_import_error(error) from error
    if retraining is not None:
        raise typer.Exit(run_retraining(retraining, checked, json=json))
    raise typer.Exit(run(checked, json=json))


@app.command()
def search(
    spec: SpecFile,
    set: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="A search that was interrupted.")] = None,
    json: Json = False,
) -> None:
    """Search for the best adapter here: a spec with a search: section, on a local Ray."""
    search_spec = load_search(spec, set or [])
    _check_spec(search_spec.spec)
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.cli.search_local import run_search as run
    except ModuleNotFoundError as error:
        raise translate_import_error(error) from error
    raise typer.Exit(run(search_spec, resume=resume, json=json))


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
