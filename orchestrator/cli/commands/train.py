"""`slora plan`, `train` and `search`: check a spec, plan it, and run it on this machine."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Annotated

import typer

from jobs.federation.check import check_federation
from jobs.inspect.datasets.scan import ScanProgress
from jobs.plan.data_report import describe_data
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.kinds import get_kind, require_kind
from jobs.spec.load import load_spec
from jobs.spec.schema import FederatedSpec, RetrainSpec, RunSpec, SearchSpec, make_site_spec
from jobs.train.cluster.ray_address import read_ray_address
from jobs.train.data.token_pass import PassProgress
from jobs.train.data.tokenize_run import tokenize_run
from jobs.train.job_main import OFFLINE_QUIET, require_extra
from orchestrator.cli.console import (
    LazyProgressBar,
    err_console,
    note,
    print_json,
    print_line,
    show_table,
)
from orchestrator.cli.options import Json, Overrides, SpecFile
from orchestrator.cli.render import plan_table
from orchestrator.cli.retrain_plan import plan_retraining

app = typer.Typer()


@app.command()
def plan(
    spec: SpecFile,
    set: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; overrides cluster.workers.")
    ] = None,
    rates: Annotated[
        bool,
        typer.Option("--rates", help="Train a few steps at each of a few learning rates here."),
    ] = False,
    json: Json = False,
) -> None:
    """Show a run's parameters, memory, traffic, time and cost, without starting it."""
    overrides = [*(set or ()), *([f"cluster.workers={workers}"] if workers is not None else [])]
    run_spec = load_spec(spec, overrides)
    if rates:
        _show_rates(run_spec, json=json)
        return
    if isinstance(run_spec, FederatedSpec):
        site_run = validate_run(make_site_spec(run_spec), quick=True, tokenizes_next=True)
        site_run = tokenize_run(site_run, quick=True)
        federation = check_federation(run_spec, quick=True, site_run=site_run)
        if json:
            data = describe_data(federation.validated_run)
            print_json({**federation.to_json(), "data": data})
        else:
            plan_table.show_plan(federation.validated_run, federation.plan)
        return
    start = None
    if isinstance(run_spec, RetrainSpec):
        checked, start = plan_retraining(run_spec)
    else:
        checked = validate_run(run_spec, quick=True, tokenizes_next=True)
        checked = tokenize_run(checked, quick=True)
    if json:
        values = {**checked.plan.to_json(), "data": describe_data(checked)}
        print_json({**values, **({} if start is None else {"retrain": start})})
        return
    plan_table.show_plan(checked)
    if start is not None:
        print_line(start)


def _show_rates(spec: RunSpec, *, json: bool) -> None:
    """Run the range test of a spec in this process, with one worker, and print its table."""
    spec = make_site_spec(spec)
    cluster = spec.cluster.model_copy(update={"sync_every": 1})
    spec = spec.model_copy(update={"cluster": cluster})
    validated = _tokenize_with_bar(_validate_with_bar(spec))
    # Before the libraries below are imported, which read it.
    os.environ.update(OFFLINE_QUIET)
    if not spec.cluster.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    with require_extra():
        from jobs.tools.range_test import (
            TEST_STEPS,
            count_test_steps,
            iter_table_rows,
            measure_rates,
        )
    total = count_test_steps(validated)
    with closing(LazyProgressBar("Trying the rates", total, counts="steps")) as bar:
        tests = measure_rates(
            validated,
            lambda: bar.advance(1),
            lambda key, tried: note(f"{key} {tried.rate:g}: {tried.describe_loss()}"),
        )
    if json:
        print_json({"steps": TEST_STEPS, "tests": [test.to_json() for test in tests]})
        return
    print_line(f"Loss after {TEST_STEPS} steps at each rate, from the same start:")
    headers = ("key", "rate", "loss", "")
    show_table(list(iter_table_rows(tests)), headers=headers, right=("rate", "loss"))
    for test in tests:
        if test.best is not None:
            print_line(f"--set {test.key}={test.best:g}")


@app.command()
def train(spec: SpecFile, set: Overrides = None, json: Json = False) -> None:
    """Run a spec of any kind from this machine, on a running Ray or a new one."""
    raise typer.Exit(_run(load_spec(spec, set or []), resume=None, json=json))


@app.command()
def search(
    spec: SpecFile,
    set: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="Id of an interrupted search.")] = None,
    json: Json = False,
) -> None:
    """Search for the best adapter, or run another kind of spec, on a running Ray or a new one."""
    run_spec = load_spec(spec, set or [])
    if resume is not None:
        require_kind(run_spec, SearchSpec)
    raise typer.Exit(_run(run_spec, resume=resume, json=json))


def _run(spec: RunSpec, *, resume: str | None, json: bool) -> int:
    """Run a spec of any kind to its end, and return the exit code of the command."""
    read_ray_address()
    run = _validate_with_bar(spec)
    # Ray takes half a second to import, and most commands need none. Before the rows are tokenised:
    # that takes longer, and is of no use without it.
    with require_extra():
        from orchestrator.cli.local_run import run_spec
    run = _tokenize_with_bar(run)
    validated = check_federation(spec, site_run=run) if isinstance(spec, FederatedSpec) else run
    note(f"{spec.name} is {get_kind(spec).noun}.")
    return run_spec(spec, validated, resume=resume, json=json)


def _tokenize_with_bar(validated: ValidatedRun) -> ValidatedRun:
    """Tokenise the rows, with a bar if that takes long, and show their tally."""
    rows = validated.train_scan.rows + (validated.eval_scan.rows if validated.eval_scan else 0)
    notes = validated.plan.notes
    with closing(LazyProgressBar("Tokenising the rows", rows, counts="rows")) as bar:
        validated = tokenize_run(validated, progress=_make_advance(bar))
    for key, tally in validated.plan.tallies.items():
        note(f"{key}: {tally.describe()}")
    for line in validated.plan.notes[len(notes) :]:
        note(f"{line}.")
    return validated


def _make_advance(bar: LazyProgressBar) -> PassProgress:
    reported = 0

    def advance(done: int) -> None:
        nonlocal reported
        # The evaluation rows are counted from the beginning again.
        bar.advance(done - reported if done > reported else done)
        reported = done

    return advance


def _validate_with_bar(spec: RunSpec) -> ValidatedRun:
    """Validate a spec before it runs, with a bar if reading the data takes long. Of a federation,
    validate the run of a site.
    """
    bar: LazyProgressBar | None = None
    reported = 0

    def report_progress(_: int, done: int, total: int) -> None:
        nonlocal bar, reported
        if bar is None or done < reported:
            bar, reported = LazyProgressBar("Checking the data", total), 0
        bar.advance(done - reported)
        reported = done

    progress: ScanProgress | None = report_progress if err_console.is_terminal else None
    try:
        if isinstance(spec, FederatedSpec):
            spec = make_site_spec(spec)
        return validate_run(spec, progress=progress, tokenizes_next=True)
    finally:
        if bar is not None:
            bar.close()
