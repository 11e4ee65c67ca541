"""`slora projects`: the projects of runs and tokens, and their limits."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import Fault, InputError
from orchestrator.cli.console import CommandGroup, print_json, print_line, show_table
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.client.errors import MissingResource
from orchestrator.schemas.admin import ProjectResponse

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Manage projects and their limits.")

NO_LIMIT = "none"
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the project.")]
Runs = Annotated[str | None, typer.Option(metavar="N", help="Maximum concurrent runs, or none.")]
Workers = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum concurrent workers, or none.")
]
Tokens = Annotated[
    str | None, typer.Option(metavar="N", help="Maximum tokens trained per day, or none.")
]


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """List the projects visible to this token, with their limits."""
    with connect_service(service) as client:
        projects = list(client.projects.list())
    if json:
        print_json({"projects": [project.model_dump() for project in projects]})
        return
    headers = ("project", "runs", "workers", "tokens per day")
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
    """Create a project; without limits it may use all capacity."""
    limits = _parse_limits(max_runs, max_workers, max_tokens_a_day)
    with connect_service(service) as client:
        project = client.projects.create(name, **limits)
    print_json(project.model_dump()) if json else print_line(
        f"Created project {name}: {_format_limits(project)}."
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
    """Change the given limits; the others stay."""
    limits = _parse_limits(max_runs, max_workers, max_tokens_a_day)
    if not limits:
        remedy = "Set at least one, for example --max-runs 4 or --max-runs none."
        raise InputError([Fault("limits", "no limit is given", remedy)])
    with connect_service(service) as client:
        existing = next(
            (candidate for candidate in client.projects.list() if candidate.name == name), None
        )
        if existing is None:
            raise MissingResource(f"There is no project {name[:100]!a}. See `slora projects list`.")
        project = client.projects.update(existing, **limits)
    print_json(project.model_dump()) if json else print_line(
        f"Changed project {name}: {_format_limits(project)}."
    )


def _parse_limits(
    runs: str | None, workers: str | None, tokens: str | None
) -> dict[str, int | None]:
    """Return the given limits. Raise InputError with all invalid ones."""
    named = {"max_runs": runs, "max_workers": workers, "max_tokens_a_day": tokens}
    limit_texts = {key: text for key, text in named.items() if text is not None}
    faults = [
        Fault(
            f"--{key.replace('_', '-')}", f"{text[:40]!a} is not a limit", "Use a number or none."
        )
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
        "tokens per day": project.max_tokens_a_day,
    }
    parts = [f"{limit:,} {resource}" for resource, limit in limits.items() if limit is not None]
    return ", ".join(parts) if parts else "no limits"
