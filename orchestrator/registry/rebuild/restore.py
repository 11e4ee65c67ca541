"""Writing down what the store told of a run, beside what the registry knows already."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry import projects
from orchestrator.registry.lifecycle import OVER, Status
from orchestrator.registry.rebuild.run_files import RunFiles
from orchestrator.registry.tables import AttemptRow, EventRow, RunRow
from orchestrator.registry.values import format_submission_id

STORE_ORIGIN = "store"
"""The origin of what was read from there."""
UNKNOWN_CLUSTER = "unknown"


def put_run(
    session: Session,
    files: RunFiles,
    *,
    store: str,
    project: str,
    search: str | None,
    attempt: int,
    committed: bool,
) -> bool:
    """Keep a run; whether anything changed. One that the control plane moved stays as it is."""
    row = session.get(RunRow, files.id, with_for_update=True)
    if row is not None and row.origin != STORE_ORIGIN:
        return False
    values = _make_run_values(
        files, store, search, max(attempt, files.attempt), committed=committed
    )
    if row is None:
        changed = _insert_run(
            session, {**values, **_make_request_values(session, files, project), "revision": 1}
        )
    else:
        values["attempt"] = max(values["attempt"], row.attempt)
        changes = {name: value for name, value in values.items() if getattr(row, name) != value}
        for name, value in changes.items():
            setattr(row, name, value)
        row.revision += bool(changes)
        changed = bool(changes)
    if changed and values["attempt"]:
        _put_attempt(session, values)
    return changed


def put_events(session: Session, files: RunFiles) -> int:
    """Append what the journal has behind what was read before; how many."""
    last_position = session.scalar(
        select(func.max(EventRow.position)).where(
            EventRow.run == files.id, EventRow.origin == STORE_ORIGIN
        )
    )
    new = [
        {
            "run": files.id,
            "origin": STORE_ORIGIN,
            "position": position,
            "at": event.at,
            "kind": event.kind,
            "attempt": 0,
            "body": dict(event.body),
        }
        for position, event in enumerate(files.events, start=1)
        if position > (last_position or 0)
    ]
    if new:
        session.execute(insert(EventRow), new)
    return len(new)


def _make_request_values(session: Session, files: RunFiles, project: str) -> dict[str, Any]:
    """What its request says; a run without one is no service's, so no cluster is named for it."""
    request = files.request
    if request is None:
        return {"project": project, "priority": 0, "cluster": UNKNOWN_CLUSTER}
    projects.ensure_project(session, request.project)
    return {
        "project": request.project,
        "priority": request.priority,
        "cluster": request.cluster,
        "tokens": request.tokens,
    }


def _make_run_values(
    files: RunFiles, store: str, search: str | None, attempt: int, *, committed: bool
) -> dict[str, Any]:
    # An adapter of the run is there, whatever the last words of its journal were.
    status, reason, detail = files.status, files.reason, files.detail
    if committed:
        status, reason, detail = Status.DONE, None, ""
    return {
        "id": files.id,
        "kind": files.kind,
        "name": files.name,
        "store": store,
        "spec_sha256": files.spec_sha256,
        "workers": files.workers,
        "status": status.value,
        "reason": None if reason is None else reason.value,
        "detail": detail,
        "attempt": attempt,
        "search": search,
        "origin": STORE_ORIGIN,
        "created_at": files.created_at,
        "updated_at": files.updated_at,
    }


def _insert_run(session: Session, values: dict[str, Any]) -> bool:
    try:
        with session.begin_nested():
            session.execute(insert(RunRow).values(values))
    except IntegrityError:
        return False  # the control plane was asked for the same run at the same moment
    return True


def _put_attempt(session: Session, values: dict[str, Any]) -> None:
    """The newest attempt, which is all that a store tells; on which cluster it does not."""
    row = session.get(AttemptRow, (values["id"], values["attempt"]))
    ended = values["updated_at"] if Status(values["status"]) in OVER else None
    state = {"status": values["status"], "reason": values["reason"], "ended_at": ended}
    if row is not None:
        for name, value in state.items():
            setattr(row, name, value)
        return
    identity = {
        "run": values["id"],
        "number": values["attempt"],
        "submission": format_submission_id(values["id"], values["attempt"]),
        "cluster": UNKNOWN_CLUSTER,
        "created_at": values["created_at"],
    }
    session.execute(insert(AttemptRow).values({**identity, **state}))
