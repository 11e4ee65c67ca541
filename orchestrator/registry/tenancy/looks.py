"""What each process is looking at, written before it looks and deleted after.

A row whose process has died says what the process died of. Once is no proof, because an operator or
the kernel may have killed it for another reason; an item that was looked at by two processes in a
row when they died is quarantined. A process proves that it lives by a row of its own kind, whose
time it renews; so a look that outlasts the lease of its loop is no death.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from orchestrator.registry.database import insert_once
from orchestrator.registry.db_clock import now
from orchestrator.registry.tables import LookRow
from orchestrator.registry.tenancy import quarantine
from orchestrator.registry.tenancy.quarantine import ItemKind

PROCESS_KIND = "process"
MAX_DEATHS = 2
"""Processes in a row that may die while they look at an item, before it is quarantined."""
RETENTION_S = 7 * 86400.0
"""Looks of dead processes are forgotten after this time: nobody looks at these items any more."""


class LookVerdict(StrEnum):
    """Whether a process may look at an item."""

    CLEAR = "clear"
    BUSY = "busy"
    """Another process is looking at it, or died too recently to be known as dead."""
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Look:
    """A look to begin; `loop` is unique to a loop of a process."""

    loop: str
    holder: str
    kind: ItemKind
    item: str
    project: str | None = None


def begin(session: Session, look: Look, *, timeout_s: float) -> LookVerdict:
    """Write that a process looks at an item now, in place of the loop's last look.

    A process that has not beaten for `timeout_s` seconds is dead.
    """
    if quarantine.get(session, look.kind, look.item) is not None:
        return LookVerdict.QUARANTINED
    same_item = (LookRow.kind == look.kind, LookRow.item == look.item)
    rows = session.scalars(select(LookRow).where(*same_item, LookRow.holder != look.holder)).all()
    if any(_is_alive(session, row.holder, timeout_s) for row in rows):
        return LookVerdict.BUSY
    deaths = max((row.deaths + 1 for row in rows), default=0)
    for row in rows:
        session.delete(row)
    session.flush()
    if deaths >= MAX_DEATHS:
        reason = f"{deaths} processes in a row ended while they looked at it"
        quarantine.add(session, look.kind, look.item, reason=reason, project=look.project)
        return LookVerdict.QUARANTINED
    session.execute(delete(LookRow).where(LookRow.loop == look.loop))
    values = {
        "loop": look.loop,
        "holder": look.holder,
        "kind": look.kind,
        "item": look.item,
        "project": look.project,
        "deaths": deaths,
    }
    insert_once(session, LookRow, values, timestamp_columns=("started_at",))
    return LookVerdict.CLEAR


def end(session: Session, loop: str) -> None:
    """Delete the look of a loop."""
    session.execute(delete(LookRow).where(LookRow.loop == loop))


def beat(session: Session, holder: str) -> None:
    """Write that a process lives."""
    values = {"loop": f"{PROCESS_KIND}.{holder}"[:128], "kind": PROCESS_KIND, "item": "",
              "holder": holder}  # fmt: skip
    if insert_once(session, LookRow, values, timestamp_columns=("started_at",)) is None:
        mine = (LookRow.holder == holder, LookRow.kind == PROCESS_KIND)
        session.execute(update(LookRow).where(*mine).values(started_at=now()))


def end_process(session: Session, holder: str) -> None:
    """Delete the row by which a process proves that it lives."""
    mine = (LookRow.holder == holder, LookRow.kind == PROCESS_KIND)
    session.execute(delete(LookRow).where(*mine))


def delete_expired(session: Session) -> None:
    """Delete the looks, and the proofs of life, of processes that died long ago."""
    session.execute(delete(LookRow).where(LookRow.started_at < now() - RETENTION_S))


def _is_alive(session: Session, holder: str, timeout_s: float) -> bool:
    query = select(LookRow.loop).where(
        LookRow.holder == holder,
        LookRow.kind == PROCESS_KIND,
        LookRow.started_at > now() - timeout_s,
    )
    return session.scalar(query) is not None
