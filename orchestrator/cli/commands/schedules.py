"""`slora schedules`: runs that the service submits by itself, on a cron schedule."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.console import (
    CommandGroup,
    note,
    print_json,
    print_line,
    show_pairs,
    show_table,
)
from orchestrator.cli.options import Json, Overrides, Service, SpecFile
from orchestrator.cli.remote import Project, complete_names, connect_service, resolve_project
from orchestrator.cli.render.run_table import format_time
from orchestrator.cli.submission import read_submission
from orchestrator.client.client import ServiceClient
from orchestrator.schemas.schedules import ScheduleResponse

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Manage runs that the service submits on a cron schedule.",
)


def _complete_schedules(incomplete: str) -> list[str]:
    return complete_names(
        lambda client: (schedule.name for schedule in client.schedules.list()), incomplete
    )


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of the schedule.", autocompletion=_complete_schedules
    ),
]


@app.command()
def add(
    spec: SpecFile,
    cron: Annotated[
        str, typer.Option(metavar="CRON", help="Cron expression: '0 3 * * *' is daily at 3:00.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the schedule. Default: the spec's name.")
    ] = None,
    set: Overrides = None,
    time_zone: Annotated[
        str, typer.Option(metavar="ZONE", help="Time zone of the cron expression.")
    ] = "UTC",
    concurrency: Annotated[
        str, typer.Option(help="If the previous run still runs: skip, queue or replace.")
    ] = "skip",
    missed: Annotated[
        str, typer.Option(help="Times missed while the service was down: skip, latest or all.")
    ] = "latest",
    jitter: Annotated[
        float, typer.Option(metavar="SECONDS", help="Maximum random delay.", min=0)
    ] = 0.0,
    only_new_data: Annotated[
        bool, typer.Option("--only-new-data", help="Skip when data.train has not changed.")
    ] = False,
    project: Project = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Cluster, as shown by slora clusters.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-1000, max=1000, help="Higher priorities run first.")
    ] = 0,
    service: Service = None,
    json: Json = False,
) -> None:
    """Submit a spec at the times of a cron expression."""
    submission = read_submission(spec, set or [])
    request: dict[str, Any] = {
        "name": name or submission.name,
        "kind": submission.kind,
        "spec": dict(submission.spec),
        "cron": cron,
        "time_zone": time_zone,
        "concurrency": concurrency,
        "missed": missed,
        "jitter_s": jitter,
        "only_new_data": only_new_data,
        "priority": priority,
    }
    placement = {"project": project, "cluster": cluster}
    with connect_service(service) as client:
        schedule = client.schedules.create(
            {**request, **{key: value for key, value in placement.items() if value}}
        )
    _print_change("Added", schedule, json=json)


@app.command("list")
def list_command(project: Project = None, service: Service = None, json: Json = False) -> None:
    """List the schedules visible to this token."""
    with connect_service(service) as client:
        schedules = list(client.schedules.list(project=project))
    if json:
        print_json({"schedules": [schedule.model_dump() for schedule in schedules]})
    elif schedules:
        headers = ("schedule", "project", "cron", "zone", "next (UTC)", "kind")
        show_table([_format_row(schedule) for schedule in schedules], headers=headers)
    else:
        note("No schedules yet. Add one: slora schedules add SPEC --cron '0 3 * * *'.")


@app.command()
def show(name: Name, project: Project = None, service: Service = None, json: Json = False) -> None:
    """Show one schedule: its times, its spec, and its rules for overlapping and missed times."""
    with connect_service(service) as client:
        schedule = _get_schedule(client, project, name)
    print_json(schedule.model_dump()) if json else show_pairs(_format_pairs(schedule))


@app.command()
def pause(name: Name, project: Project = None, service: Service = None, json: Json = False) -> None:
    """Stop submitting runs until the schedule is resumed."""
    with connect_service(service) as client:
        schedule = client.schedules.update(_get_schedule(client, project, name), paused=True)
    _print_change("Paused", schedule, json=json)


@app.command()
def resume(
    name: Name, project: Project = None, service: Service = None, json: Json = False
) -> None:
    """Submit runs again, from now on."""
    with connect_service(service) as client:
        schedule = client.schedules.update(_get_schedule(client, project, name), paused=False)
    _print_change("Resumed", schedule, json=json)


@app.command()
def remove(
    name: Name, project: Project = None, service: Service = None, json: Json = False
) -> None:
    """Remove a schedule and the list of its firings; its runs stay."""
    with connect_service(service) as client:
        project_name = resolve_project(client, project)
        client.schedules.delete(project_name, name)
    if json:
        print_json({"removed": name, "project": project_name})
    else:
        print_line(f"Removed schedule {project_name}/{name}.")


@app.command("firings")
def list_firings(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of firings to show.")] = 20,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """List the outcomes of a schedule's times, newest first."""
    with connect_service(service) as client:
        project_name = resolve_project(client, project)
        records = list(client.schedules.list_firings(project_name, name, max_items=limit))
    if json:
        print_json({"firings": [firing.model_dump() for firing in records]})
    elif records:
        rows = [
            (
                format_time(firing.due_at),
                format_time(firing.fired_at),
                firing.outcome,
                firing.run or "-",
            )
            for firing in records
        ]
        show_table(rows, headers=("due (UTC)", "fired", "outcome", "run"), folded=("run",))
    else:
        note("The schedule has not fired yet.")


def _get_schedule(client: ServiceClient, project: str | None, name: str) -> ScheduleResponse:
    return client.schedules.get(resolve_project(client, project), name)


def _print_change(verb: str, schedule: ScheduleResponse, *, json: bool) -> None:
    if json:
        print_json(schedule.model_dump())
        return
    next_text = "" if schedule.paused else f"; next {format_time(schedule.next_at)} UTC"
    print_line(f"{verb} schedule {schedule.project}/{schedule.name}{next_text}.")


def _format_row(schedule: ScheduleResponse) -> tuple[str, ...]:
    next_text = "paused" if schedule.paused else format_time(schedule.next_at)[:16]
    return (
        schedule.name,
        schedule.project,
        schedule.cron,
        schedule.time_zone,
        next_text,
        schedule.kind,
    )


def _format_pairs(schedule: ScheduleResponse) -> list[tuple[str, str]]:
    return [
        ("schedule", f"{schedule.project}/{schedule.name}"),
        ("cron", f"{schedule.cron} ({schedule.time_zone})"),
        ("next", "paused" if schedule.paused else f"{format_time(schedule.next_at)} UTC"),
        ("kind", f"{schedule.kind}, only on new data" if schedule.only_new_data else schedule.kind),
        ("overlaps", schedule.concurrency),
        ("missed", schedule.missed),
        ("jitter", f"{schedule.jitter_s:g} s"),
        ("cluster", f"{schedule.cluster}, priority {schedule.priority}"),
        ("data", str(_get_train_data(schedule))),
    ]


def _get_train_data(schedule: ScheduleResponse) -> Any:
    data = schedule.spec.get("data")
    return data.get("train", "-") if isinstance(data, dict) else "-"
