"""Items that no loop handles: looking at them ended the process, or an operator added them.

An item is a run (its id), a schedule (PROJECT/NAME) or a job on a cluster (its submission id).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry.database import insert_once
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.tables import LookRow, QuarantineRow
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor, record
from orchestrator.registry.values import clean_text, make_value

ItemKind = Literal["run", "schedule", "job"]
ITEM_KINDS: tuple[ItemKind, ...] = get_args(ItemKind)
MAX_ITEM_CHARS = 160


@dataclass(frozen=True)
class QuarantinedItem:
    """An item in quarantine, and why."""

    kind: ItemKind
    item: str
    project: str | None
    reason: str
    error_id: str | None
    by_label: str | None
    created_at: float


def add(
    session: Session,
    kind: ItemKind,
    item: str,
    *,
    reason: str,
    project: str | None = None,
    error_id: str | None = None,
    actor: Actor = SERVICE,
) -> QuarantinedItem:
    """Put an item in quarantine, and record it in the audit log.

    Raise InputError if there is no such kind, or if the item is there.
    """
    check_item(kind, item)
    values = {
        "kind": kind,
        "item": item,
        "project": project,
        "reason": clean_text(reason),
        "error_id": error_id,
        "by_label": actor.label,
    }
    row = insert_once(session, QuarantineRow, values, timestamp_columns=("created_at",))
    if row is None:
        problem = f"the {kind} {item!a} is in quarantine already"
        raise InputError([Fault("ITEM", problem, "Release it first to change the reason.")])
    added = make_value(QuarantinedItem, row)
    _record(session, actor, "quarantine", added, after={"reason": added.reason})
    return added


def get(session: Session, kind: ItemKind, item: str) -> QuarantinedItem | None:
    """Read an item in quarantine; None if it is not there."""
    row = session.get(QuarantineRow, (kind, item), populate_existing=True)
    return None if row is None else make_value(QuarantinedItem, row)


def release(
    session: Session, kind: ItemKind, item: str, *, actor: Actor = SERVICE
) -> QuarantinedItem:
    """Take an item out of quarantine, forget what happened before, and return it.

    Raise UnknownItem if it is not there.
    """
    row = session.get(QuarantineRow, (kind, item), populate_existing=True)
    if row is None:
        raise UnknownItem(f"quarantined {kind}", item)
    released = make_value(QuarantinedItem, row)
    session.delete(row)
    session.execute(delete(LookRow).where(LookRow.kind == kind, LookRow.item == item))
    _record(session, actor, "release", released, before={"reason": released.reason})
    return released


def list_items(session: Session) -> list[QuarantinedItem]:
    """List all items in quarantine, newest first."""
    newest_first = (QuarantineRow.created_at.desc(), QuarantineRow.kind, QuarantineRow.item)
    rows = session.scalars(select(QuarantineRow).order_by(*newest_first))
    return [make_value(QuarantinedItem, row) for row in rows]


def find_reasons(session: Session, kind: ItemKind) -> dict[str, str]:
    """Return why each item of a kind is in quarantine; this is a query of every pass."""
    query = select(QuarantineRow.item, QuarantineRow.reason).where(QuarantineRow.kind == kind)
    return {row.item: row.reason for row in session.execute(query)}


def select_items(kind: ItemKind) -> Any:
    """Build the query of the items of a kind, for a condition of another query."""
    return select(QuarantineRow.item).where(QuarantineRow.kind == kind)


def name_schedule(project: str, name: str) -> str:
    """Return the item of a schedule."""
    return f"{project}/{name}"


def check_item(kind: str, item: str) -> None:
    """Raise InputError if there can be no such item."""
    faults: Sequence[Fault] = ()
    if kind not in ITEM_KINDS:
        faults = [Fault("KIND", f"{kind[:40]!a} is not a kind", f"Use {', '.join(ITEM_KINDS)}.")]
    elif not (0 < len(item) <= MAX_ITEM_CHARS and item.isprintable()):
        remedy = f"Use 1 to {MAX_ITEM_CHARS} printable characters."
        faults = [Fault("ITEM", f"{item[:40]!a} is not the id of a {kind}", remedy)]
    elif kind == "schedule" and item.count("/") != 1:
        faults = [Fault("ITEM", f"{item[:40]!a} is not a schedule", "Use PROJECT/NAME.")]
    if faults:
        raise InputError(faults)


def _record(
    session: Session, actor: Actor, action: str, item: QuarantinedItem, **values: Any
) -> None:
    record(
        session,
        actor,
        action=action,
        object_kind=item.kind,
        object=item.item,
        project=item.project,
        **values,
    )
