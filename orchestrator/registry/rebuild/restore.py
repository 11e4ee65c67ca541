"""Write what was read from the store into the registry, beside the rows of the control plane."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from orchestrator.registry.database import insert_once, update_row
from orchestrator.registry.lifecycle import OVER, Status
from orchestrator.registry.rebuild.run_files import RunFiles
from orchestrator.registry.tables import AttemptRow, EventRow, RunRow
from orchestrator.registry.values import Run, format_submission_id

STORE_ORIGIN = "store"
"""Origin of what was read from the store."""
UNKNOWN_CLUSTER = "unknown"
COPIED_COLUMNS = (
    "id", "kind", "name", "spec_sha256", "workers", "detail", "created_at", "updated_at",
)  # fmt: skip


def put_run(
    session: Session,
    files: RunFiles,
    *,
    store: str,
    project: str,
    search: str | None = None,
    attempt: int = 0,
    committed: bool = False,
) -> bool:
    """Insert or update a run, except one that the control plane wrote.

    A run of another store or project stays as it is: anybody may write a folder with its id.
    `attempt` is the newest attempt that claimed a version; `committed` tells that an adapter of the
    run exists. Return whether anything changed.
    """
    row = session.get(RunRow, files.id, with_for_update=True)
    if row is not None and (row.origin != STORE_ORIGIN or not is_of_store(row, store)):
        return False
    if committed:
        # An adapter proves success, whatever the journal says last.
        files = replace(files, status=Status.DONE, reason=None, detail="")
    values = {name: getattr(files, name) for name in COPIED_COLUMNS}
    values |= {"status": files.status.value, "reason": files.reason and files.reason.value}
    values |= {"store": store, "search": search, "origin": STORE_ORIGIN}
    values["attempt"] = max(attempt, files.attempt)
    if row is None:
        values |= {**_make_request_values(files), "project": project, "revision": 1}
        # It is not inserted if the control plane accepts the same run at the same time.
        changed = insert_once(session, RunRow, values, timestamp_columns=()) is not None
    else:
        values["attempt"] = max(values["attempt"], row.attempt)
        changed = update_row(row, values)
        row.revision += changed
    if changed and values["attempt"]:
        _put_attempt(session, values)
    return changed


def put_events(session: Session, files: RunFiles) -> int:
    """Insert the events after the last one that is recorded. Return how many."""
    query = select(func.max(EventRow.position)).where(
        EventRow.run == files.id, EventRow.origin == STORE_ORIGIN
    )
    last_position = session.scalar(query) or 0
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
        if position > last_position
    ]
    if new:
        session.execute(insert(EventRow), new)
    return len(new)


def is_of_store(run: Run | RunRow, store: str) -> bool:
    """Return whether the files of a run lie in this store."""
    return run.store.rstrip("/") == store.rstrip("/")


def _make_request_values(files: RunFiles) -> dict[str, Any]:
    """Return the columns of the request; a run without one was not submitted to a service.

    Its project is left out: the folder that it lies in tells whose it is, not a file in it.
    """
    request = files.request
    if request is None:
        return {"priority": 0, "cluster": UNKNOWN_CLUSTER}
    return request.model_dump(include={"priority", "cluster", "tokens", "cpus", "gpus"})


def _put_attempt(session: Session, values: dict[str, Any]) -> None:
    """Insert or update the newest attempt; the store knows neither earlier ones nor its cluster."""
    row = session.get(AttemptRow, (values["id"], values["attempt"]))
    ended_at = values["updated_at"] if Status(values["status"]) in OVER else None
    state = {"status": values["status"], "reason": values["reason"], "ended_at": ended_at}
    if row is not None:
        update_row(row, state)
        return
    identity = {
        "run": values["id"],
        "number": values["attempt"],
        "submission": format_submission_id(values["id"], values["attempt"]),
        "cluster": UNKNOWN_CLUSTER,
        "created_at": values["created_at"],
    }
    session.execute(insert(AttemptRow).values({**identity, **state}))
