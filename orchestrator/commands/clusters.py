"""`slora clusters`: the Ray clusters of the service, whether they answer, and what is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer

from orchestrator.client.values import Cluster
from orchestrator.commands.options import Json, Service
from orchestrator.commands.remote import asking
from orchestrator.console import print_json, show_table, size_text

app = typer.Typer()


@app.command()
def clusters(service: Service = None, json: Json = False) -> None:
    """The Ray clusters that the service submits to, and what of them is free."""
    with asking(service) as client:
        found = client.clusters()
    if json:
        print_json({"clusters": [asdict(one) for one in found]})
        return
    headers = ("cluster", "", "nodes", "CPUs free", "GPUs free", "largest node")
    show_table([_row(one) for one in found], headers=headers, right=headers[2:])


def _row(one: Cluster) -> tuple[str, ...]:
    has = one.capacity
    if not one.up or has is None:
        return one.name, "does not answer", "-", "-", "-", "-"
    memory = has.get("node_memory")
    largest = "-" if not isinstance(memory, int) else size_text(memory)
    return one.name, "up", _number(has, "nodes"), _free(has, "cpus"), _free(has, "gpus"), largest


def _free(has: Mapping[str, Any], what: str) -> str:
    return f"{_number(has, f'free_{what}')} of {_number(has, what)}"


def _number(has: Mapping[str, Any], key: str) -> str:
    value = has.get(key)
    return f"{value:g}" if isinstance(value, int | float) else "-"
