"""`slora deploy`: let a name on an inference server answer with an adapter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.store.adapters.listing import resolve_adapter
from jobs.store.adapters.operations import split_name
from jobs.store.open import open_store
from orchestrator.cli.adapters_local import get_named_store
from orchestrator.cli.commands.serving.deployment_table import show_deployment
from orchestrator.cli.console import CommandGroup, note, print_json
from orchestrator.cli.options import DEFAULT_STORE, AdapterName, Json, Service, Store

if TYPE_CHECKING:
    from orchestrator.client.client import ServiceClient

app = typer.Typer(cls=CommandGroup)

POLL_S = 0.5
WORKING = ("pending", "rolling_out")
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Configuration of a service whose `serving` section has the endpoint; without a "
        "service only.",
    ),
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Project. Default: the token's.")]


@app.command()
def deploy(
    adapter: AdapterName,
    to: Annotated[
        str,
        typer.Option(
            metavar="ENDPOINT",
            help="Endpoint of the service's configuration; without a service also a server's URL.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Public name. Default: the adapter's."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt of the canary, beside those of the adapter's run. Repeatable."),
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Longest answer of the canary.")
    ] = None,
    loss_tolerance: Annotated[
        float | None,
        typer.Option(metavar="LOSS", help="Distance between the loss served and the run's."),
    ] = None,
    store: Store = DEFAULT_STORE,
    config: Config = None,
    project: Project = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Let a name on an inference server answer with an adapter, and follow its promotions.

    NAME follows the promoted version, NAME@v2 stays. A version answers after its canary; one that
    fails leaves the old one answering, and the exit code is 1. Without a service nobody follows:
    repeat the command after a promotion.
    """
    base_name, version = split_name(adapter)
    settings = {
        "prompts": prompt or None,
        "max_latency_s": max_latency,
        "loss_tolerance": loss_tolerance,
    }
    canary = {key: value for key, value in settings.items() if value is not None}
    public = name or base_name
    if service is None:
        values = _deploy_locally(base_name, version, to, public, canary, store, config)
    else:
        body = {"adapter": base_name, "version": version, "endpoint": to, "name": public}
        where = {"project": project, "store": get_named_store(store)}
        values = _deploy_remotely(service, {**body, **where, "canary": canary})
    print_json(values) if json else show_deployment(values)
    is_done = values["status"] == "live" and not values["problem"]
    raise typer.Exit(0 if is_done else 1)


def _deploy_locally(
    adapter: str,
    version: int | None,
    endpoint: str,
    name: str,
    canary: dict[str, Any],
    store: str,
    config: Path | None,
) -> dict[str, Any]:
    # A command with a service needs none of it.
    from orchestrator.cli.commands.serving.local_deployments import (
        name_user,
        open_local_target,
        read_values,
        settle_deployment,
    )
    from orchestrator.deployments import deployment_acts
    from orchestrator.deployments.deployment_acts import DeploymentWish, parse_canary_settings

    object_store, settings = open_store(store), parse_canary_settings(canary)
    wish = DeploymentWish(name, adapter, version, endpoint, settings)
    # What is wrong with the adapter is told before a server is asked.
    resolve_adapter(object_store, wish.label)
    with open_local_target(object_store, endpoint, config) as target:
        deployment_acts.deploy(object_store, target, wish, by=name_user())
        settle_deployment(object_store, target, name)
    return read_values(object_store, name)


def _deploy_remotely(service: str, body: dict[str, Any]) -> dict[str, Any]:
    from orchestrator.cli.remote import connect_service

    with connect_service(service) as client:
        made = client.deployments.create(body)
        return _follow_rollout(client, made.name, made.project, made.store, len(made.history))


def _follow_rollout(
    client: ServiceClient, name: str, project: str, store: str, known: int
) -> dict[str, Any]:
    """Tell each event of a rollout until it has ended, or has to wait. Return the deployment."""
    from orchestrator.cli.commands.serving.local_deployments import note_event

    while True:
        shown = client.deployments.get(name, project=project, store=store)
        for entry in shown.history[known:]:
            note_event(name, entry.model_dump())
        known = max(known, len(shown.history))
        is_wanted = shown.live is not None and shown.status == "live"
        if shown.problem:
            note(f"{shown.problem} The service tries again.")
        if shown.problem or (shown.status not in WORKING and (is_wanted or shown.declined)):
            return shown.model_dump()
        time.sleep(POLL_S)
