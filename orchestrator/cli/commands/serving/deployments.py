"""`slora deployments`: list the deployments of a store or a service, show, roll back, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.store.open import open_store
from orchestrator.cli.adapters_local import get_named_store
from orchestrator.cli.commands.serving.deploy import Config, Project
from orchestrator.cli.commands.serving.deployment_table import show_deployment, show_deployments
from orchestrator.cli.console import CommandGroup, note, print_json, print_line
from orchestrator.cli.options import DEFAULT_STORE, Json, Service, Store

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="List deployments, show one, roll it back or remove it.",
)

Act = Literal["rollback", "remove"]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="The deployment's server, if it was deployed to a URL and SLORA_SERVING_KEY is set.",
    ),
]


@app.command("list")
def list_command(
    store: Store = DEFAULT_STORE,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """List the deployments of the store, or with --service those of a project."""
    deployments: list[dict[str, Any]]
    if service is not None:
        # A command on a store needs no client, here and below.
        from orchestrator.cli.remote import connect_service

        with connect_service(service) as client:
            rows = client.deployments.list(project=project)
            deployments = [row.model_dump() for row in rows]
    else:
        from orchestrator.deployments.deployment_record import list_deployments
        from orchestrator.deployments.describe_record import describe_deployment

        object_store = open_store(store)
        names = list_deployments(object_store)
        deployments = [describe_deployment(object_store, name) for name in names]
    if json:
        print_json({"deployments": deployments})
    else:
        show_deployments(deployments)


@app.command("show")
def show_command(
    name: Name,
    store: Store = DEFAULT_STORE,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Show a deployment: what answers, how far a rollout is, and its history."""
    if service is not None:
        from orchestrator.cli.remote import connect_service

        with connect_service(service) as client:
            shown = client.deployments.get(name, project=project, store=get_named_store(store))
        values = shown.model_dump()
    else:
        from orchestrator.cli.commands.serving.local_deployments import read_values

        values = read_values(open_store(store), name)
    print_json(values) if json else show_deployment(values)


@app.command("rollback")
def rollback_command(
    name: Name,
    to: Server = None,
    store: Store = DEFAULT_STORE,
    config: Config = None,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Answer with the version before, at once; the next promotion is followed again."""
    if service is None:
        values = _act_locally("rollback", name, store, to, config)
    else:
        values = _act_remotely("rollback", name, store, project, service)
    if json:
        print_json(values)
    else:
        print_line(f"{values['model']} answers with {values['adapter']}@v{values['live']} again.")


@app.command("remove")
def remove_command(
    name: Name,
    to: Server = None,
    store: Store = DEFAULT_STORE,
    config: Config = None,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Take a name and its versions from the server. The adapter stays in the store."""
    if service is None:
        values = _act_locally("remove", name, store, to, config)
    else:
        values = _act_remotely("remove", name, store, project, service)
    if json:
        print_json(values)
    else:
        is_gone = service is None and values["problem"] is None
        verb = "was removed" if is_gone else "is being removed"
        print_line(f"The deployment {name} {verb}.")


def _act_remotely(
    act: Act, name: str, store: str, project: str | None, service: str
) -> dict[str, Any]:
    """Roll back or remove a deployment of a service. Return its values."""
    from orchestrator.cli.remote import connect_service

    with connect_service(service) as client:
        acts = {"rollback": client.deployments.rollback, "remove": client.deployments.remove}
        return acts[act](name, project=project, store=get_named_store(store)).model_dump()


def _act_locally(
    act: Act, name: str, store: str, to: str | None, config: Path | None
) -> dict[str, Any]:
    """Roll back or remove a deployment of a store. Return its values."""
    from orchestrator.cli.commands.serving.local_deployments import (
        check_named,
        name_user,
        open_local_target,
        settle_deployment,
    )
    from orchestrator.deployments import deployment_acts
    from orchestrator.deployments.deployment_record import read_deployment
    from orchestrator.deployments.describe_record import describe_record

    object_store = open_store(store)
    endpoint = read_deployment(object_store, name)[0].endpoint
    check_named(name, endpoint, to)
    with open_local_target(object_store, endpoint, config) as target:
        if act == "remove":
            record = deployment_acts.remove(object_store, name, by=name_user())
        else:
            record = deployment_acts.rollback(object_store, target, name, by=name_user())
        problem = settle_deployment(object_store, target, name)
    if problem is not None:
        note(problem)
    return {**describe_record(object_store, record, detail=True), "problem": problem}
