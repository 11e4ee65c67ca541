"""Delete an ended run: its files in the store first, then its rows, so that a repetition resumes.

A committed adapter is never deleted. While one names the run, the documents that describe how it
was made stay too (spec, plan, ledger, evaluation): `slora evaluate`, `audit` and `reproduce` read
them. Checkpoints, masks, journals and the request go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from jobs.errors import InputError, NotInStore
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.runs.heartbeat import HEARTBEAT
from jobs.store.runs.run_store import RUNS_PREFIX, format_run_key
from orchestrator.registry import projects, usage
from orchestrator.registry.database import Database
from orchestrator.registry.errors import RunInUse
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.run_request import REQUEST_FILE, read_request
from orchestrator.registry.runs import REGISTRY_ORIGIN
from orchestrator.registry.tables import AdapterRow
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor, record
from orchestrator.registry.tenancy.expired_rows import delete_run_rows
from orchestrator.registry.values import Run

DOCUMENT_SUFFIXES = (".yaml", ".json")
TEMPORARY_DOCUMENTS = (REQUEST_FILE, HEARTBEAT)


@dataclass(frozen=True)
class RemovedRun:
    """What was deleted of a run, and what stayed."""

    run: str
    files: int
    """Number of deleted files."""
    retained_files: int
    reason: str = ""
    """Why files stayed; empty if none did."""


def check_removable(database: Database, run: Run) -> None:
    """Raise RunInUse if the run has not ended, or still counts in its project's tokens of a day."""
    if run.status not in FINAL:
        remedy = f"Use `slora stop {run.id}`, and wait for its end."
        raise RunInUse(run.id, f"it is {run.status.value}", remedy)
    with database.read() as session:
        limit = projects.get(session, run.project).max_tokens_a_day
        counts_today = limit is not None and usage.is_counted_today(session, run)
    if counts_today:
        reason = f"its tokens count in the day's limit of project {run.project}"
        raise RunInUse(run.id, reason, "Delete it 24 hours after its first submission.")


def remove_run(
    database: Database,
    run: Run,
    *,
    instance: str,
    store_opener: Callable[[str], ObjectStore],
    actor: Actor = SERVICE,
) -> RemovedRun:
    """Delete the files and the rows of an ended run. Raise StoreError before any row is deleted.

    The audit log gets one entry, in the transaction that deletes the rows.
    """
    store = store_opener(run.store)
    keys = list_run_keys(store, run.id, with_trials=run.kind == "search")
    reason, retained = "", set[str]()
    if not _is_own(store, run, instance):
        reason, retained = "another service accepted the run", set(keys)
    elif has_adapter(database, store, run):
        reason, retained = "its adapter needs them", set(filter(_is_document, keys))
    # The request last: while it is there, the rest is known to be this service's.
    deleted = [key for key in keys if key not in retained]
    delete_keys_in_order(store, deleted)
    removed = RemovedRun(run.id, len(deleted), len(retained), reason if retained else "")
    with database.write() as session:
        if delete_run_rows(session, run):
            _record_removal(session, actor, run, removed)
    return removed


def list_run_keys(store: ObjectStore, run_id: str, *, with_trials: bool) -> list[str]:
    """List the keys of a run, and of the trials of a search, whose ids start with that of it."""
    if not with_trials:
        return list(store.list(format_run_key(run_id)))
    trial_id = re.compile(re.escape(run_id) + r"-t[0-9]{3,9}")
    folders: dict[str, list[str]] = {}
    for key in store.list(f"{RUNS_PREFIX}{run_id}"):
        folders.setdefault(key.split("/")[1], []).append(key)
    return [
        key
        for folder, keys in folders.items()
        # A run with a request was submitted by itself, whatever its name.
        if folder == run_id
        or (trial_id.fullmatch(folder) and format_run_key(folder, REQUEST_FILE) not in keys)
        for key in keys
    ]


def delete_keys_in_order(store: ObjectStore, keys: Iterable[str]) -> None:
    """Delete keys, the request last."""
    for key in sorted(keys, key=lambda key: (key.endswith(f"/{REQUEST_FILE}"), key)):
        store.delete(key)


def has_adapter(database: Database, store: ObjectStore, run: Run) -> bool:
    """Return whether a committed adapter names the run or its search."""
    query = select(AdapterRow.version).where(
        AdapterRow.store == run.store, or_(AdapterRow.run == run.id, AdapterRow.search == run.id)
    )
    with database.read() as session:
        if session.scalar(query.limit(1)) is not None:
            return True
    versions = list_versions(store, run.name)[-LOOK_BACK:]
    return (
        find_newest(
            store, run.name, versions, lambda manifest: run.id in (manifest.run, manifest.search)
        )
        is not None
    )


def _record_removal(session: Session, actor: Actor, run: Run, removed: RemovedRun) -> None:
    record(
        session,
        actor,
        action="delete",
        object_kind="run",
        object=run.id,
        project=run.project,
        before={"status": run.status.value, "store": run.store, "by": run.by_label},
        after={"files": removed.files, "retained_files": removed.retained_files},
    )


def _is_own(store: ObjectStore, run: Run, instance: str) -> bool:
    """Return whether the run's files are this service's: it moved the run, or accepted it."""
    try:
        owner = read_request(store, run.id).instance
    except (NotInStore, InputError):
        owner = None
    return owner == instance if owner is not None else run.origin == REGISTRY_ORIGIN


def _is_document(key: str) -> bool:
    name = key.rpartition("/")[2]
    is_in_folder = key.count("/") == 2
    return is_in_folder and name.endswith(DOCUMENT_SUFFIXES) and name not in TEMPORARY_DOCUMENTS
