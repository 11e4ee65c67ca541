"""`slora projects`: what runs and tokens belong to, and how much of it there may be."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import Fault, InputError
from orchestrator.cli.console import CommandGroup, print_json, print_line, show_table
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.client.errors import MissingResource
from orchestrator.schemas.admin import ProjectResponse

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="What runs and tokens belong to.")

NO_LIMIT = "none"
Name = Annotated[str, typer.Argument(metavar="NAME")]
Runs = Annotated[str | None, typer.Option(metavar="N", help="Runs at once, or none: no limit.")]
Workers = Annotated[str | None, typer.Option(metavar="N", help="Workers at once.")]
Tokens = Annotated[str | None, typer.Option(metavar="N", help="Tokens trained in a day.")]


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """The projects that this token sees, and their limits."""
    with connect_service(service) as client:
        projects = list(client.projects.list())
    if json:
        print_json({"projects": [project.model_dump() for project in projects]})
        return
    headers = ("project", "runs", "workers", "tokens a day")
    show_table([_format_row(project) for project in projects], headers=headers, right=headers[1:])


@app.command()
def add(
    name: Name,
    max_runs: Runs = None,
    max_workers: Workers = None,
    max_tokens_a_day: Tokens = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Make a project; without limits it may use what there is."""
    limits = _parse_limits(max_runs, max_workers, max_tokens_a_day)
    with connect_service(service) as client:
        project = client.projects.create(name, **limits)
    print_json(project.model_dump()) if json else print_line(
        f"project {name} is made: {_format_limits(project)}."
    )


@app.command("set")
def set_command(
    name: Name,
    max_runs: Runs = None,
    max_workers: Workers = None,
    max_tokens_a_day: Tokens = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Change the limits that are named; the others stay."""
    limits = _parse_limits(max_runs, max_workers, max_tokens_a_day)
    if not limits:
        remedy = "As in --max-runs 4, or --max-runs none."
        raise InputError([Fault("limits", "none is named", remedy)])
    with connect_service(service) as client:
        existing = next(
            (candidate for candidate in client.projects.list() if candidate.name == name), None
        )
        if existing is None:
            raise MissingResource(f"There is no project {name[:100]!a}. See `slora projects list`.")
        project = client.projects.update(existing, **limits)
    print_json(project.model_dump()) if json else print_line(
        f"project {name}: {_format_limits(project)}."
    )


def _parse_limits(
    runs: str | None, workers: str | None, tokens: str | None
) -> dict[str, int | None]:
    """The named ones. Raises InputError with all that are none."""
    named = {"max_runs": runs, "max_workers": workers, "max_tokens_a_day": tokens}
    limit_texts = {key: text for key, text in named.items() if text is not None}
    faults = [
        Fault(f"--{key.replace('_', '-')}", f"{text[:40]!a} is no limit", "A number, or none.")
        for key, text in limit_texts.items()
        if text != NO_LIMIT and not text.isdecimal()
    ]
    if faults:
        raise InputError(faults)
    return {key: None if text == NO_LIMIT else int(text) for key, text in limit_texts.items()}


def _format_row(project: ProjectResponse) -> tuple[str, ...]:
    limits = (project.max_runs, project.max_workers, project.max_tokens_a_day)
    return project.name, *("-" if limit is None else f"{limit:,}" for limit in limits)


def _format_limits(project: ProjectResponse) -> str:
    limits = {
        "runs": project.max_runs,
        "workers": project.max_workers,
        "tokens a day": project.max_tokens_a_day,
    }
    parts = [f"{limit:,} {resource}" for resource, limit in limits.items() if limit is not None]
    return ", ".join(parts) if parts else "no limits"
