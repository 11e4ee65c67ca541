"""A deployment as a command or the API shows it."""

from __future__ import annotations

from typing import Any

from jobs.store.base import ObjectStore
from jobs.store.trust.statements import find_project
from orchestrator.deployments.deployment_record import (
    BadDeployment,
    DeploymentRecord,
    read_deployment,
)


def describe_record(
    store: ObjectStore, record: DeploymentRecord, *, detail: bool = False
) -> dict[str, Any]:
    """Return the values of a deployment; with `detail` its canary and its history too."""
    rollout, declined = record.rollout, record.declined
    url = store.url("").rstrip("/")
    values: dict[str, Any] = {
        "project": find_project(url),
        "store": url,
        "name": record.name,
        "adapter": record.adapter,
        "pin": record.pin,
        "endpoint": record.endpoint,
        "model": record.model,
        "status": record.status,
        "live": record.live,
        "previous": record.previous,
        "step": rollout and rollout.step,
        "version": rollout and rollout.version,
        "declined": declined and {"version": declined.version, "reason": declined.reason},
        "problem": record.problem,
        "updated": record.history[-1].when if record.history else "",
    }
    if detail:
        values["canary"] = record.canary.model_dump(mode="json")
        values["history"] = [entry.model_dump(mode="json") for entry in record.history]
    return values


def describe_deployment(store: ObjectStore, name: str) -> dict[str, Any]:
    """Return the values of a deployment for a list, also of one whose record is corrupt.

    Raise NotInStore.
    """
    try:
        return describe_record(store, read_deployment(store, name)[0])
    except BadDeployment as error:
        url = store.url("").rstrip("/")
        known = {"project": find_project(url), "store": url, "name": name}
        unknown = {"adapter": "", "endpoint": "", "updated": ""}
        return {**known, **unknown, "status": "unreadable", "problem": str(error)}
