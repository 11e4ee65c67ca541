"""What the audit log tells about changes of projects, tokens, schedules and pointers.

A spec is recorded as its digest; the secret of a token, and its digest, never are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy.orm import Session

from orchestrator.registry.adapters import AdapterPointer
from orchestrator.registry.schedules import Schedule
from orchestrator.registry.tenancy import audit_log
from orchestrator.registry.tenancy.audit_log import Actor
from orchestrator.registry.tokens import Token
from orchestrator.registry.values import Project

BOOKKEEPING = {
    *("id", "name", "project", "created_at", "revision", "next_at", "data_fingerprint"),
    *("by_token", "by_label"),
}
"""Fields that follow from a change, or that the entry has anyway."""


def record_project(
    session: Session, actor: Actor, before: Project | None, after: Project | None
) -> None:
    """Record that a project was created, changed or deleted."""
    project = before or after
    assert project is not None
    values = [None if item is None else _select_values(item) for item in (before, after)]
    _record(session, actor, "project", project.name, project.name, *values)


def record_schedule(
    session: Session, actor: Actor, before: Schedule | None, after: Schedule | None
) -> None:
    """Record that a schedule was created, changed or deleted."""
    schedule = before or after
    assert schedule is not None
    values = [None if item is None else _describe_schedule(item) for item in (before, after)]
    _record(session, actor, "schedule", schedule.name, schedule.project, *values)


def record_token(session: Session, actor: Actor, before: Token | None, after: Token) -> None:
    """Record that a token was created or revoked. To revoke it again changes nothing."""
    if before is None:
        values = {"label": after.label, "scope": after.scope, "expires_at": after.expires_at}
        _record(session, actor, "token", after.id, after.project, None, values)
    elif before.revoked_at is None:
        audit_log.record(
            session,
            actor,
            action="revoke",
            object_kind="token",
            object=after.id,
            project=after.project,
            before={"label": before.label, "scope": before.scope},
            after={"revoked_at": after.revoked_at},
        )


def record_pointer(
    session: Session,
    *,
    actor: Actor,
    action: str,
    project: str,
    before: AdapterPointer | None,
    after: AdapterPointer,
) -> None:
    """Record that the pointer of a name moved, unless the registry knows the move already.

    A request that is repeated after the database failed is recorded then.
    """
    known = None if before is None else {"version": before.version, "move": before.move}
    if before != after:
        audit_log.record(
            session,
            actor,
            action=action,
            object_kind="adapter",
            object=after.name,
            project=project,
            before=known,
            after={"version": after.version, "move": after.move, "store": after.store},
        )


def _record(
    session: Session,
    actor: Actor,
    kind: str,
    name: str,
    project: str | None,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Record a creation, a deletion, or a change with the values that differ, if any do."""
    action = "create" if before is None else "delete" if after is None else "change"
    if before is not None and after is not None:
        before, after = audit_log.compare_values(before, after)
        if not after:
            return
    audit_log.record(
        session,
        actor,
        action=action,
        object_kind=kind,
        object=name,
        project=project,
        before=before,
        after=after,
    )


def _describe_schedule(schedule: Schedule) -> dict[str, Any]:
    spec = json.dumps(dict(schedule.spec), sort_keys=True).encode()
    values = _select_values(schedule)
    del values["spec"]
    return {**values, "spec_sha256": sha256(spec).hexdigest()}


def _select_values(value: Project | Schedule) -> dict[str, Any]:
    return {name: item for name, item in vars(value).items() if name not in BOOKKEEPING}
