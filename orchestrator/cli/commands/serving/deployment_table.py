"""Show deployments on the terminal, those of a store and those of a service alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli.console import note, print_line, show_pairs, show_table


def show_deployments(deployments: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of deployments."""
    if not deployments:
        note("No deployments yet.")
        return
    headers = ("deployment", "endpoint", "status", "live", "follows", "problem")
    rows = [
        (
            deployment["name"],
            deployment["endpoint"],
            _format_status(deployment),
            _format_version(deployment["live"]),
            _format_subject(deployment),
            deployment.get("problem") or "",
        )
        for deployment in deployments
    ]
    show_table(rows, headers=headers)


def show_deployment(deployment: Mapping[str, Any]) -> None:
    """Print one deployment with its history."""
    declined = deployment.get("declined")
    pairs = [
        ("deployment", deployment["name"]),
        ("endpoint", deployment["endpoint"]),
        ("model", deployment.get("model") or "-"),
        ("status", _format_status(deployment)),
        ("live", _format_version(deployment["live"])),
        ("previous", _format_version(deployment["previous"])),
        ("follows", _format_subject(deployment)),
        ("store", deployment["store"]),
    ]
    if declined:
        pairs.append(("declined", f"v{declined['version']}: {declined['reason']}"))
    if deployment.get("problem"):
        pairs.append(("problem", deployment["problem"]))
    show_pairs(pairs)
    print_line("")
    rows = [
        (
            entry["when"].replace("T", " ").rstrip("Z"),
            entry["event"],
            _format_version(entry.get("version")),
            entry.get("by") or "",
            entry.get("detail") or "",
        )
        for entry in deployment["history"]
    ]
    show_table(rows, headers=("when (UTC)", "event", "version", "by", "detail"))


def _format_status(deployment: Mapping[str, Any]) -> str:
    step = deployment.get("step")
    if not step:
        return str(deployment["status"])
    return f"{deployment['status']} v{deployment['version']}: {step}"


def _format_subject(deployment: Mapping[str, Any]) -> str:
    pin = deployment.get("pin")
    return f"{deployment['adapter']}@v{pin}" if pin else str(deployment["adapter"])


def _format_version(version: int | None) -> str:
    return "-" if version is None else f"v{version}"
