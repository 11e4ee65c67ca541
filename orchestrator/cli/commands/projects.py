"""`slora projects`: the projects of runs and tokens, their limits, and what their runs may read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jobs.errors import Fault, InputError
from jobs.places.places import normalize_place
from orchestrator.cli.commands.list_options import ListOptionCommand
from orchestrator.cli.console import CommandGroup, print_json, print_line
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.cli.render.project_table import ANY, format_limits, show_project, show_projects

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Manage projects and their limits.")

PLACE_REMEDY = "Use an absolute path, an s3:// URL, a hub id, org/*, any or none."
NO_LIMIT = "none"
MAX_DIGITS = 20
"""Longer numbers are no limit that a service accepts."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the project.")]
Runs = Annotated[str | None, typer.Option(metavar="N", help="Maximum concurrent runs, or none.")]
Workers = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum concurrent workers, or none.")
]
Tokens = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum tokens trained per day, or none.")
]
Queued = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum runs that have not ended, or none.")
]
Schedules = Annotated[str | None, typer.Option(metavar="N", help="Maximum schedules, or none.")]
Cpus = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum CPUs of concurrent workers, or none.")
]
Gpus = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum GPUs of concurrent workers, or none.")
]
Stored = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum bytes of all adapters, or none.")
]
Priority = Annotated[
    str | None, typer.Option(metavar="N", help="Highest priority of a run, or none.")
]

Places = Annotated[
    list[str] | None,
    typer.Option(metavar="PREFIX...", help="Where data and models may lie, or any, or none."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL...", help="Models beside those: paths, ids, org/*, or any, none."),
]
Fields = dict[str, Any]


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """List the projects visible to this token, with their limits."""
    with connect_service(service) as client:
        projects = list(client.projects.list())
    if json:
        print_json({"projects": [project.model_dump() for project in projects]})
        return
    show_projects(projects)


@app.command()
def show(name: Name, service: Service = None, json: Json = False) -> None:
    """Show what a project uses beside its limits, and what its runs may read."""
    with connect_service(service) as client:
        project = client.projects.get(name)
    print_json(project.model_dump()) if json else show_project(project)


@app.command(cls=ListOptionCommand)
def add(
    name: Name,
    max_runs: Runs = None,
    max_workers: Workers = None,
    max_tokens_a_day: Tokens = None,
    max_queued: Queued = None,
    max_schedules: Schedules = None,
    max_cpus: Cpus = None,
    max_gpus: Gpus = None,
    max_stored_bytes: Stored = None,
    max_priority: Priority = None,
    places: Places = None,
    models: Models = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Create a project; without limits it may use all capacity, without places read no files."""
    limits = _parse_limits(
        max_runs=max_runs,
        max_workers=max_workers,
        max_tokens_a_day=max_tokens_a_day,
        max_queued=max_queued,
        max_schedules=max_schedules,
        max_cpus=max_cpus,
        max_gpus=max_gpus,
        max_stored_bytes=max_stored_bytes,
        max_priority=max_priority,
    )
    inputs = _parse_inputs(places, models)
    with connect_service(service) as client:
        project = client.projects.create(name, **limits, **inputs)
    print_json(project.model_dump()) if json else print_line(
        f"Created project {name}: {format_limits(project)}."
    )


@app.command("set", cls=ListOptionCommand)
def set_command(
    name: Name,
    max_runs: Runs = None,
    max_workers: Workers = None,
    max_tokens_a_day: Tokens = None,
    max_queued: Queued = None,
    max_schedules: Schedules = None,
    max_cpus: Cpus = None,
    max_gpus: Gpus = None,
    max_stored_bytes: Stored = None,
    max_priority: Priority = None,
    places: Places = None,
    models: Models = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Change the given limits, places and models; the others stay."""
    changes = _parse_limits(
        max_runs=max_runs,
        max_workers=max_workers,
        max_tokens_a_day=max_tokens_a_day,
        max_queued=max_queued,
        max_schedules=max_schedules,
        max_cpus=max_cpus,
        max_gpus=max_gpus,
        max_stored_bytes=max_stored_bytes,
        max_priority=max_priority,
    )
    changes |= _parse_inputs(places, models)
    if not changes:
        remedy = "Set at least one, for example --max-runs 4 or --max-runs none."
        raise InputError([Fault("limits", "no limit is given", remedy)])
    with connect_service(service) as client:
        project = client.projects.update(client.projects.get(name), **changes)
    print_json(project.model_dump()) if json else print_line(
        f"Changed project {name}: {format_limits(project)}."
    )


def _parse_inputs(places: list[str] | None, models: list[str] | None) -> Fields:
    """Return what the runs may read, as far as it is given. Raise InputError with all faults."""
    fields, faults = dict[str, Any](), list[Fault]()
    for key, texts in (("places", places), ("models", models)):
        # Typer gives an empty list for an option that is not there.
        if not texts:
            continue
        if texts in ([ANY], [NO_LIMIT]):
            fields[key] = None if texts == [ANY] else []
            continue
        fields[key] = texts
        faults += _check_places(f"--{key}", texts)
    if faults:
        raise InputError(faults)
    return fields


def _check_places(key: str, texts: list[str]) -> Iterator[Fault]:
    for text in texts:
        try:
            normalize_place(text)
        except ValueError as error:
            yield Fault(key, str(error), PLACE_REMEDY)


def _parse_limits(**named: str | None) -> Fields:
    """Return the given limits. Raise InputError with all invalid ones."""
    limit_texts = {key: text for key, text in named.items() if text is not None}
    faults = [
        Fault(
            f"--{key.replace('_', '-')}", f"{text[:40]!a} is not a limit", "Use a number or none."
        )
        for key, text in limit_texts.items()
        if text != NO_LIMIT and not _is_number(key, text)
    ]
    if faults:
        raise InputError(faults)
    return {key: None if text == NO_LIMIT else int(text) for key, text in limit_texts.items()}


def _is_number(key: str, text: str) -> bool:
    """Return whether a text is a number that the service can bound; only a priority has a sign."""
    digits = text.removeprefix("-") if key == "max_priority" else text
    return digits.isascii() and digits.isdecimal() and len(digits) < MAX_DIGITS
