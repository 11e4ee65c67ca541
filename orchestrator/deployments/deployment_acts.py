"""What people do to deployments: deploy, roll back, remove. Each act is one write of the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from jobs.errors import AlreadyExists, Fault, InputError, NotInStore, WriteConflict
from jobs.store.adapters.listing import read_committed, resolve_adapter
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.deployment_record import (
    CanarySettings,
    Declined,
    DeploymentRecord,
    Rollout,
    get_public_name,
    name_version,
    read_deployment,
    write_deployment,
)
from orchestrator.deployments.errors import NoEarlierVersion
from orchestrator.deployments.follow_pointer import find_wish
from orchestrator.deployments.rollout_decision import list_loaded, make_rollout
from orchestrator.deployments.servable_forms import find_target_faults, get_served_form
from orchestrator.deployments.serving_target import ServingTarget, TargetState

MAX_ROUNDS = 20
"""Attempts of a write that meets those of a rollout."""


@dataclass(frozen=True)
class DeploymentWish:
    """What somebody wants to deploy."""

    name: str
    adapter: str
    pin: int | None
    endpoint: str
    canary: CanarySettings

    @property
    def label(self) -> str:
        """Return the adapter as commands name it, NAME or NAME@vN."""
        return self.adapter if self.pin is None else f"{self.adapter}@v{self.pin}"


def parse_canary_settings(values: Mapping[str, Any]) -> CanarySettings:
    """Return the settings of a command. Raise InputError."""
    try:
        return CanarySettings.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(
            [
                Fault(".".join(map(str, fault["loc"])), fault["msg"], "Use another value.")
                for fault in error.errors(include_url=False, include_context=False)
            ]
        ) from None


def deploy(
    store: ObjectStore, target: ServingTarget, wish: DeploymentWish, *, by: str
) -> DeploymentRecord:
    """Record a deployment, after the server was found fit for the version that it starts with.

    A deployment of this name follows the new wish, and tries again what it declined. Raise
    InputError with all reasons why the server can't serve the version, before anything moves.
    """
    manifest = resolve_adapter(store, wish.label)
    state = target.read_state()
    if faults := find_target_faults(store, manifest, state, wish.endpoint):
        raise InputError(faults)
    for _ in range(MAX_ROUNDS):
        try:
            record, etag = _find_deployment(store, wish.name)
            if record is None:
                _check_name_free(store, wish, state)
                record = DeploymentRecord(
                    name=wish.name, adapter=wish.adapter, endpoint=wish.endpoint
                )
            _check_same_subject(record, wish)
            changed = record.change(pin=wish.pin, canary=wish.canary, declined=None, problem=None)
            changed = changed.change(rollout=_begin_rollout(store, changed, manifest, state))
            detail = f"{wish.label} to {wish.endpoint}"
            changed = changed.add_event("deployed", manifest.version, detail, by=by)
            write_deployment(store, changed, etag)
        except (WriteConflict, AlreadyExists):
            continue
        return changed
    raise WriteConflict(wish.name)


def rollback(store: ObjectStore, target: ServingTarget, name: str, *, by: str) -> DeploymentRecord:
    """Answer with the version before, at once; what the pointer names now is not tried again.

    Raise NoEarlierVersion, NotInStore, TargetUnreachable or TargetRefused.
    """
    state = target.read_state()
    record = _record_rollback(store, name, by)
    assert record.live is not None
    versioned = name_version(get_public_name(store, name), record.live)
    # The record decides: a crash here is completed by whoever follows the deployment.
    if versioned not in state.adapters:
        target.load(versioned, store, read_committed(store, record.adapter, record.live))
    if state.names is not None:
        target.set_name(get_public_name(store, name), versioned)
    return record


def remove(store: ObjectStore, name: str, *, by: str) -> DeploymentRecord:
    """Mark a deployment for removal: its name stops answering, then its versions are unloaded."""
    for _ in range(MAX_ROUNDS):
        record, etag = read_deployment(store, name)
        if record.removing:
            return record
        changed = record.change(removing=True, rollout=None).add_event("removal_requested", by=by)
        try:
            write_deployment(store, changed, etag)
        except WriteConflict:
            continue
        return changed
    raise WriteConflict(name)


def _record_rollback(store: ObjectStore, name: str, by: str) -> DeploymentRecord:
    for _ in range(MAX_ROUNDS):
        record, etag = read_deployment(store, name)
        if record.previous is None or record.removing:
            raise NoEarlierVersion(name)
        wish = find_wish(store, record)
        detail = f"from v{record.live}"
        model = record.model
        if model is not None and model.endswith(f"@v{record.live}"):
            model = f"{model.rpartition('@v')[0]}@v{record.previous}"
        changed = record.change(
            live=record.previous,
            previous=None,
            model=model,
            rollout=None,
            declined=Declined(version=wish.version, move=wish.move, reason=f"rolled back {detail}"),
        ).add_event("rolled_back", record.previous, detail, by=by)
        try:
            write_deployment(store, changed, etag)
        except WriteConflict:
            continue
        return changed
    raise WriteConflict(name)


def _find_deployment(store: ObjectStore, name: str) -> tuple[DeploymentRecord | None, str | None]:
    try:
        return read_deployment(store, name)
    except NotInStore:
        return None, None


def _begin_rollout(
    store: ObjectStore, record: DeploymentRecord, manifest: Manifest, state: TargetState
) -> Rollout | None:
    """Return the rollout of the version that was just checked; None if it answers already."""
    wish = find_wish(store, record)
    if wish.version == record.live or wish.version != manifest.version:
        return None
    public = get_public_name(store, record.name)
    return make_rollout(wish, get_served_form(manifest), record, public, state)


def _check_name_free(store: ObjectStore, wish: DeploymentWish, state: TargetState) -> None:
    """Raise InputError if the server has this name from somebody else."""
    public = get_public_name(store, wish.name)
    names = state.names or {}
    if public in names or list_loaded(public, state.adapters):
        problem = f"the endpoint {wish.endpoint} serves a {public} that is not in this store"
        remedy = "Start the server without it, or deploy under another name with --as."
        raise InputError([Fault("name", problem, remedy)])


def _check_same_subject(record: DeploymentRecord, wish: DeploymentWish) -> None:
    """Raise InputError if the deployment of this name is for another adapter or server."""
    if record.removing:
        problem = f"the deployment {record.name} is being removed"
        raise InputError([Fault("name", problem, "Wait until it is gone, and deploy again.")])
    if (record.adapter, record.endpoint) != (wish.adapter, wish.endpoint):
        problem = f"the deployment {record.name} is of {record.adapter} to {record.endpoint}"
        remedy = (
            f"Remove it first (slora deployments remove {record.name}), or deploy under another "
            "name with --as."
        )
        raise InputError([Fault("name", problem, remedy)])
