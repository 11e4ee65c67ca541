"""The audit log: each change and who made it, written in the transaction of the change.

Entries are only added: triggers of the database refuse to change one, and to delete one that is
younger than MIN_AUDIT_DAYS. An entry never holds a secret or the digest of a secret.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import CursorResult, Table, delete, insert, select
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.tables import AuditRow
from orchestrator.registry.values import clean_text, make_value

MIN_AUDIT_DAYS = 30
MAX_LABEL_CHARS = 63

Values = Mapping[str, Any]

_AUDIT = cast(Table, AuditRow.__table__)
# Build the statement once: it runs for every submission.
_INSERT = insert(_AUDIT).values(at=now())


@dataclass(frozen=True)
class Actor:
    """Who makes a change: the token of a request, or nobody if the service acts by itself."""

    token: str | None = None
    """Id of the token, never its secret."""
    label: str | None = None
    address: str | None = None
    """Address of the client."""
    request_id: str | None = None


SERVICE = Actor()
"""The service itself."""


@dataclass(frozen=True)
class AuditEntry:
    """A change as it was recorded."""

    id: int
    at: float
    request_id: str | None
    token: str | None
    label: str | None
    project: str | None
    action: str
    object_kind: str
    object: str
    before: Values | None
    after: Values | None
    address: str | None


def make_local_actor() -> Actor:
    """Return the user of this machine, for commands that write to the database themselves."""
    number = os.getuid()
    try:
        user = pwd.getpwuid(number).pw_name
    except KeyError:
        user = str(number)  # a container may run as a user without a name
    return Actor(label=f"local:{user}"[:MAX_LABEL_CHARS])


def record(
    session: Session,
    actor: Actor,
    *,
    action: str,
    object_kind: str,
    object: str,
    project: str | None,
    before: Values | None = None,
    after: Values | None = None,
) -> None:
    """Record a change in its own transaction. `before` and `after` are the values that differ."""
    values = {
        "request_id": actor.request_id,
        "token": actor.token,
        "label": actor.label,
        "address": actor.address and clean_text(actor.address)[:MAX_LABEL_CHARS],
        "project": project,
        "action": action,
        "object_kind": object_kind,
        "object": clean_text(object),
        "before": before and dict(before),
        "after": after and dict(after),
    }
    session.execute(_INSERT, values)


def compare_values(before: Values, after: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values that differ, as they were and as they are."""
    names = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in names}, {name: after[name] for name in names}


def list_entries(
    session: Session,
    *,
    project: str | None = None,
    action: str | None = None,
    object_kind: str | None = None,
    object: str | None = None,
    token: str | None = None,
    since: float | None = None,
    until: float | None = None,
    after: int | None = None,
    limit: int = 100,
) -> list[AuditEntry]:
    """List entries, newest first, from `since` on and before `until`.

    `after` is the id of the last entry of the page before.
    """
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    for column, value in (
        (AuditRow.project, project),
        (AuditRow.action, action),
        (AuditRow.object_kind, object_kind),
        (AuditRow.object, object),
        (AuditRow.token, token),
    ):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(AuditRow.at >= since)
    if until is not None:
        query = query.where(AuditRow.at < until)
    if after is not None:
        query = query.where(AuditRow.id < after)
    return [make_value(AuditEntry, row) for row in session.scalars(query)]


def delete_before(session: Session, time: float) -> int:
    """Delete the entries before a time, and return their number.

    Raise DatabaseRefused if one of them is younger than MIN_AUDIT_DAYS.
    """
    deleted = session.execute(delete(AuditRow).where(AuditRow.at < time))
    return cast(CursorResult[Any], deleted).rowcount


def apply_retention(session: Session, *, days: int) -> int:
    """Delete the entries that are older than `days`, and record their number if there are any."""
    limit = session.scalar(select(now() - days * 86400.0))
    assert limit is not None
    count = delete_before(session, limit)
    if count:
        record(
            session,
            SERVICE,
            action="expire",
            object_kind="audit",
            object=f"before {limit:.0f}",
            project=None,
            after={"deleted": count},
        )
    return count
