"""Deployments without a service: the commands act on the store and the server themselves."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.store.base import ObjectStore
from jobs.store.trust.statements import find_project
from jobs.train.job_main import require_extra
from orchestrator.cli.console import note
from orchestrator.deployments.deployment_record import (
    DeploymentRecord,
    HistoryEntry,
    read_deployment,
)
from orchestrator.deployments.describe_record import describe_record
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.open_target import URL_KEY_VARIABLE, find_endpoint, open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from orchestrator.deployments.serving_target import ServingTarget


@contextmanager
def open_local_target(
    store: ObjectStore, endpoint: str, config: Path | None
) -> Iterator[ServingTarget]:
    """Open a server by its URL, or by its name in the file of a service."""
    project = find_project(store.url(""))
    endpoints = _load_endpoints(config)
    settings = find_endpoint(endpoints, endpoint, allow_url=True, project=project)
    target = open_target(endpoint, settings)
    try:
        yield target
    finally:
        target.close()


def check_named(name: str, endpoint: str, named: str | None) -> None:
    """Raise InputError if a key would be sent to a URL that a record names, and not the user.

    Others may write to the store.
    """
    is_url = "://" in endpoint
    if named is not None and named != endpoint:
        problem = f"{name} is deployed to {endpoint[:200]!a}, and not to {named[:200]!a}"
        raise InputError([Fault("--to", problem, "Leave it out, or name that server.")])
    if is_url and named is None and os.environ.get(URL_KEY_VARIABLE):
        problem = f"{URL_KEY_VARIABLE} is sent to no server that only the store names"
        remedy = f"If it is yours: add --to {endpoint[:200]!a}, or unset {URL_KEY_VARIABLE}."
        raise InputError([Fault("--to", problem, remedy)])


def settle_deployment(store: ObjectStore, target: ServingTarget, name: str) -> str | None:
    """Carry out the rollout, and tell each event. Return why the rest has to wait, or None."""
    return RolloutDriver(store, target, on_event=_note_event).settle(name)


def read_values(store: ObjectStore, name: str) -> dict[str, Any]:
    """Return the values of a deployment. Raise NotInStore."""
    return describe_record(store, read_deployment(store, name)[0], detail=True)


def name_user() -> str:
    """Return who acts, as the audit log names a user of a machine."""
    try:
        return f"local:{getpass.getuser()}"
    except (KeyError, OSError):
        return "local"  # a container may run as a user without a name


def _load_endpoints(config: Path | None) -> dict[str, EndpointConfig]:
    if config is None:
        return {}
    with require_extra("service"):
        from orchestrator.control.config import load_config
    return load_config(config).serving


def _note_event(record: DeploymentRecord, entry: HistoryEntry) -> None:
    note_event(record.name, entry.model_dump())


def note_event(name: str, entry: dict[str, Any]) -> None:
    """Tell an event of a deployment as a line."""
    version = entry.get("version")
    subject = name if version is None else f"{name}@v{version}"
    detail = f" ({entry['detail']})" if entry.get("detail") else ""
    note(f"{subject}: {entry['event'].replace('_', ' ')}{detail}")
