"""`slora projects`: what runs and tokens belong to, and how much of it there may be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.errors import Fault, InputError
from orchestrator.client.errors import NotThere
from orchestrator.client.values import Project
from orchestrator.commands.options import Json, Service
from orchestrator.commands.remote import asking
from orchestrator.console import Commands, print_json, say, show_table

app = typer.Typer(cls=Commands, no_args_is_help=True, help="What runs and tokens belong to.")

NONE = "none"
Name = Annotated[str, typer.Argument(metavar="NAME")]
Runs = Annotated[str | None, typer.Option(metavar="N", help="Runs at once, or none: no limit.")]
Workers = Annotated[str | None, typer.Option(metavar="N", help="Workers at once.")]
Tokens = Annotated[str | None, typer.Option(metavar="N", help="Tokens trained in a day.")]


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """The projects that this token sees, and their limits."""
    with asking(service) as client:
        found = list(client.projects.list())
    if json:
        print_json({"projects": [asdict(one) for one in found]})
        return
    headers = ("project", "runs", "workers", "tokens a day")
    show_table([_row(one) for one in found], headers=headers, right=headers[1:])


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
    limits = _limits(max_runs, max_workers, max_tokens_a_day)
    with asking(service) as client:
        made = client.projects.add(name, **limits)
    print_json(asdict(made)) if json else say(f"project {name} is made: {_told(made)}.")


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
    limits = _limits(max_runs, max_workers, max_tokens_a_day)
    if not limits:
        remedy = "As in --max-runs 4, or --max-runs none."
        raise InputError([Fault("limits", "none is named", remedy)])
    with asking(service) as client:
        there = next((one for one in client.projects.list() if one.name == name), None)
        if there is None:
            raise NotThere(f"There is no project {name[:100]!a}. See `slora projects list`.")
        found = client.projects.set(there, **limits)
    print_json(asdict(found)) if json else say(f"project {name}: {_told(found)}.")


def _limits(runs: str | None, workers: str | None, tokens: str | None) -> dict[str, int | None]:
    """The named ones. Raises InputError with all that are none."""
    named = {"max_runs": runs, "max_workers": workers, "max_tokens_a_day": tokens}
    given = {key: text for key, text in named.items() if text is not None}
    faults = [
        Fault(f"--{key.replace('_', '-')}", f"{text[:40]!a} is no limit", "A number, or none.")
        for key, text in given.items()
        if text != NONE and not text.isdecimal()
    ]
    if faults:
        raise InputError(faults)
    return {key: None if text == NONE else int(text) for key, text in given.items()}


def _row(one: Project) -> tuple[str, ...]:
    limits = (one.max_runs, one.max_workers, one.max_tokens_a_day)
    return one.name, *("-" if limit is None else f"{limit:,}" for limit in limits)


def _told(one: Project) -> str:
    limits = {
        "runs": one.max_runs,
        "workers": one.max_workers,
        "tokens a day": one.max_tokens_a_day,
    }
    told = [f"{limit:,} {what}" for what, limit in limits.items() if limit is not None]
    return ", ".join(told) if told else "no limits"
