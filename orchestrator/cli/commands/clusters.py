"""`slora clusters`: the service's Ray clusters, their state and free capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer

from orchestrator.cli.console import format_size, print_json, show_table
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.client.values import ClusterResponse

app = typer.Typer()


@app.command("clusters")
def list_clusters(service: Service = None, json: Json = False) -> None:
    """List the Ray clusters of the service and their free capacity."""
    with connect_service(service) as client:
        states = client.list_clusters()
    if json:
        print_json({"clusters": [asdict(cluster) for cluster in states]})
        return
    headers = ("cluster", "", "nodes", "CPUs free", "GPUs free", "largest node")
    show_table([_format_row(cluster) for cluster in states], headers=headers, right=headers[2:])


def _format_row(cluster: ClusterResponse) -> tuple[str, ...]:
    capacity = cluster.capacity
    if not cluster.up or capacity is None:
        return cluster.name, "does not answer", "-", "-", "-", "-"
    memory = capacity.get("node_memory")
    largest = "-" if not isinstance(memory, int) else format_size(memory)
    return (
        cluster.name,
        "up",
        _format_number(capacity, "nodes"),
        _format_free(capacity, "cpus"),
        _format_free(capacity, "gpus"),
        largest,
    )


def _format_free(capacity: Mapping[str, Any], resource: str) -> str:
    return f"{_format_number(capacity, f'free_{resource}')} of {_format_number(capacity, resource)}"


def _format_number(capacity: Mapping[str, Any], key: str) -> str:
    value = capacity.get(key)
    return f"{value:g}" if isinstance(value, int | float) else "-"
