"""Adopt one run that the registry lost and the store still has, while its job is alive."""

from __future__ import annotations

from dataclasses import replace

from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from orchestrator.registry import projects, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild import restore
from orchestrator.registry.rebuild.run_files import RunFiles, read_run_files
from orchestrator.registry.run_request import REQUEST_FILE
from orchestrator.registry.values import DEFAULT_PROJECT, Run


def adopt(
    database: Database,
    store: ObjectStore,
    run_id: str,
    *,
    attempt: int,
    project: str = DEFAULT_PROJECT,
) -> Run | None:
    """Restore a run as running, in the project whose store this is.

    Return None if the store has no request for it, or if it is the run of another store.

    Raise StoreError.
    """
    prefix = format_run_key(run_id)
    file_names = frozenset(key.removeprefix(prefix) for key in store.list(prefix))
    if REQUEST_FILE not in file_names:
        return None
    files = read_run_files(store, run_id, file_names)
    if not isinstance(files, RunFiles) or files.request is None:
        return None
    if files.status is not Status.DONE:
        # The journal may be empty, or end with the failure of an earlier attempt; the job is alive.
        files = replace(files, status=Status.RUNNING, reason=None, detail="")
    with database.write() as session:
        projects.ensure_project(session, project)
        restore.put_run(session, files, store=store.url(""), project=project, attempt=attempt)
        run = runs.get(session, run_id)
        return run if restore.is_of_store(run, store.url("")) else None
