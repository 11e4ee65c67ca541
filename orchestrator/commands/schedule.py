"""`slora schedule`: runs that the service makes by itself, when a cron says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestrator.client.client import Client
from orchestrator.client.values import Schedule
from orchestrator.commands.options import Json, Overrides, Service, SpecFile
from orchestrator.commands.remote import Project, asking, offered, project_of
from orchestrator.console import Commands, note, print_json, say, show_pairs, show_table
from orchestrator.run_table import moment_text
from orchestrator.submission import read_submission

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Runs that the service makes by itself.")


def _names(incomplete: str) -> list[str]:
    return offered(lambda client: (one.name for one in client.schedules.list()), incomplete)


Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_names)]


@app.command()
def add(
    spec: SpecFile,
    cron: Annotated[str, typer.Option(metavar="CRON", help="As '0 3 * * *', every night at 3.")],
    name: Annotated[str | None, typer.Option(help="Instead of the spec's.")] = None,
    set: Overrides = None,
    time_zone: Annotated[str, typer.Option(metavar="ZONE", help="As Europe/Berlin.")] = "UTC",
    concurrency: Annotated[
        str, typer.Option(help="Where the last run still runs: skip, queue or replace.")
    ] = "skip",
    missed: Annotated[
        str, typer.Option(help="Moments when no service ran: skip, latest or all.")
    ] = "latest",
    jitter: Annotated[
        float, typer.Option(metavar="SECONDS", help="At most so much later.", min=0)
    ] = 0.0,
    only_new_data: Annotated[
        bool, typer.Option("--only-new-data", help="Not where data.train is as it was.")
    ] = False,
    project: Project = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    priority: Annotated[int, typer.Option(min=-1000, max=1000)] = 0,
    service: Service = None,
    json: Json = False,
) -> None:
    """Submit a spec whenever its moment comes."""
    sent = read_submission(spec, set or [])
    asked: dict[str, Any] = {
        "name": name or sent.name,
        "kind": sent.kind,
        "spec": dict(sent.spec),
        "cron": cron,
        "time_zone": time_zone,
        "concurrency": concurrency,
        "missed": missed,
        "jitter_s": jitter,
        "only_new_data": only_new_data,
        "priority": priority,
    }
    where = {"project": project, "cluster": cluster}
    with asking(service) as client:
        made = client.schedules.add({**asked, **{key: v for key, v in where.items() if v}})
    _tell(made, "is added", json=json)


@app.command("list")
def list_command(project: Project = None, service: Service = None, json: Json = False) -> None:
    """Every schedule that this token sees."""
    with asking(service) as client:
        found = list(client.schedules.list(project=project))
    if json:
        print_json({"schedules": [asdict(one) for one in found]})
    elif found:
        headers = ("schedule", "project", "cron", "zone", "next (UTC)", "kind")
        show_table([_row(one) for one in found], headers=headers)
    else:
        note("No schedules yet: slora schedule add SPEC --cron '0 3 * * *'.")


@app.command()
def show(name: Name, project: Project = None, service: Service = None, json: Json = False) -> None:
    """One schedule: when, what, and what happens to moments that overlap or were missed."""
    with asking(service) as client:
        there = _found(client, project, name)
    print_json(asdict(there)) if json else show_pairs(_pairs(there))


@app.command()
def pause(name: Name, project: Project = None, service: Service = None, json: Json = False) -> None:
    """Let its moments pass until it is resumed."""
    with asking(service) as client:
        there = client.schedules.change(_found(client, project, name), paused=True)
    _tell(there, "is paused", json=json)


@app.command()
def resume(
    name: Name, project: Project = None, service: Service = None, json: Json = False
) -> None:
    """Let it fire again, from now on."""
    with asking(service) as client:
        there = client.schedules.change(_found(client, project, name), paused=False)
    _tell(there, "goes on", json=json)


@app.command()
def remove(
    name: Name, project: Project = None, service: Service = None, json: Json = False
) -> None:
    """Take it away with the list of its firings; its runs stay."""
    with asking(service) as client:
        whose = project_of(client, project)
        client.schedules.remove(whose, name)
    if json:
        print_json({"removed": name, "project": whose})
    else:
        say(f"schedule {name} is removed.")


@app.command()
def firings(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """What came of its moments, the newest first."""
    with asking(service) as client:
        whose = project_of(client, project)
        found = list(client.schedules.firings(whose, name, most=limit))
    if json:
        print_json({"firings": [asdict(one) for one in found]})
    elif found:
        rows = [
            (moment_text(one.due_at), moment_text(one.fired_at), one.outcome, one.run or "-")
            for one in found
        ]
        show_table(rows, headers=("due (UTC)", "fired", "outcome", "run"), folded=("run",))
    else:
        note("It has not fired yet.")


def _found(client: Client, project: str | None, name: str) -> Schedule:
    return client.schedules.get(project_of(client, project), name)


def _tell(there: Schedule, done: str, *, json: bool) -> None:
    if json:
        print_json(asdict(there))
        return
    following = "" if there.paused else f"; next {moment_text(there.next_at)} UTC"
    say(f"schedule {there.project}/{there.name} {done}{following}.")


def _row(one: Schedule) -> tuple[str, ...]:
    following = "paused" if one.paused else moment_text(one.next_at)[:16]
    return one.name, one.project, one.cron, one.time_zone, following, one.kind


def _pairs(one: Schedule) -> list[tuple[str, str]]:
    return [
        ("schedule", f"{one.project}/{one.name}"),
        ("cron", f"{one.cron} ({one.time_zone})"),
        ("next", "paused" if one.paused else f"{moment_text(one.next_at)} UTC"),
        ("kind", f"{one.kind}, only on new data" if one.only_new_data else one.kind),
        ("overlaps", one.concurrency),
        ("missed", one.missed),
        ("jitter", f"{one.jitter_s:g} s"),
        ("cluster", f"{one.cluster}, priority {one.priority}"),
        ("data", str(_data(one))),
    ]


def _data(one: Schedule) -> Any:
    data = one.spec.get("data")
    return data.get("train", "-") if isinstance(data, dict) else "-"
