"""`slora clusters`: the service's Ray clusters, their state and free capacity."""

from __future__ import annotations

import typer

from orchestrator.cli.console import format_size, print_json, show_table
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.schemas.admin import ClusterResponse

app = typer.Typer()


@app.command("clusters")
def list_clusters(service: Service = None, json: Json = False) -> None:
    """List the Ray clusters of the service and their free capacity."""
    with connect_service(service) as client:
        states = client.list_clusters()
    if json:
        print_json({"clusters": [cluster.model_dump() for cluster in states]})
        return
    headers = ("cluster", "", "nodes", "CPUs free", "GPUs free", "largest node")
    show_table([_format_row(cluster) for cluster in states], headers=headers, right=headers[2:])


def _format_row(cluster: ClusterResponse) -> tuple[str, ...]:
    capacity = cluster.capacity
    if not cluster.up or capacity is None:
        return cluster.name, "does not answer", "-", "-", "-", "-"
    largest = "-" if capacity.node_memory is None else format_size(capacity.node_memory)
    return (
        cluster.name,
        "up",
        f"{capacity.nodes}",
        f"{capacity.free_cpus:g} of {capacity.cpus:g}",
        f"{capacity.free_gpus:g} of {capacity.gpus:g}",
        largest,
    )
