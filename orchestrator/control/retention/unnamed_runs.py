"""Find files of runs in a store that no row names: of a submission that ended between its writes.

A store may be shared, and a registry may be older than the store. So only a run is found whose
request names this registry, that no adapter names, and that nothing has written for a week by the
store's clock. Files without a request are never touched: they are of local runs and trials.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.errors import InputError, NotInStore
from jobs.store.adapters.listing import scan_adapters
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import RUNS_PREFIX
from orchestrator.control.retention.run_removal import delete_keys_in_order, list_run_keys
from orchestrator.registry import projects, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.rebuild.untrusted import is_run_id
from orchestrator.registry.run_request import REQUEST_FILE, RunRequest, read_request
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor, record
from orchestrator.registry.values import DEFAULT_PROJECT

FILE_DEPTH = 2
"""Slashes in the key of a file that lies directly in a run's folder."""
GRACE_S = 7 * 86400.0
"""Longer than any submission takes, and than a restored backup waits for its rebuild."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnnamedRun:
    """A run that exists in the store only."""

    store: str
    run: str
    keys: tuple[str, ...]


def list_store_urls(database: Database, stores: Sequence[str]) -> list[str]:
    """List the configured stores, and the folders of the projects in them."""
    with database.read() as session:
        names = [project.name for project in projects.list_projects(session)]
    folders = [
        f"{store}/projects/{name}" for store in stores for name in names if name != DEFAULT_PROJECT
    ]
    return [*stores, *folders]


def find_unnamed_runs(
    database: Database, store: ObjectStore, *, instance: str, grace_s: float = GRACE_S
) -> list[UnnamedRun]:
    """Find the unnamed runs of this registry. Raise StoreError."""
    candidates = [
        UnnamedRun(store.url(""), run_id, tuple(keys))
        for run_id, request in _iterate_unnamed_requests(database, store, instance)
        if _is_stale(
            store,
            keys := list_run_keys(store, run_id, with_trials=request.kind == "search"),
            grace_s,
        )
    ]
    if not candidates:
        return []
    # Reading all manifests takes a while, so it is done only if there is something to protect.
    manifests, faults = scan_adapters(store)
    if faults:
        # An adapter that cannot be read may name any of them.
        log.warning("%s: nothing is swept while %s", store.url(""), faults[0])
        return []
    named = {manifest.run for manifest in manifests} | {manifest.search for manifest in manifests}
    return [candidate for candidate in candidates if candidate.run not in named]


def delete_unnamed_run(
    database: Database,
    unnamed: UnnamedRun,
    *,
    store_opener: Callable[[str], ObjectStore],
    actor: Actor = SERVICE,
) -> bool:
    """Delete the files of a run that still has no row. Return whether they were deleted.

    The audit log gets one entry before, so that no crash leaves the deletion unrecorded.
    """
    if _is_named(database, unnamed.run):
        return False
    with database.write() as session:
        record(
            session,
            actor,
            action="delete",
            object_kind="run",
            object=unnamed.run,
            project=None,
            before={"store": unnamed.store},
            after={"files": len(unnamed.keys)},
        )
    delete_keys_in_order(store_opener(unnamed.store), unnamed.keys)
    return True


def _iterate_unnamed_requests(
    database: Database, store: ObjectStore, instance: str
) -> Iterator[tuple[str, RunRequest]]:
    for key in store.list(RUNS_PREFIX):
        parts = key.split("/")
        if len(parts) != 3 or parts[2] != REQUEST_FILE or not is_run_id(parts[1]):
            continue
        if _is_named(database, parts[1]):
            continue
        try:
            request = read_request(store, parts[1])
        except (NotInStore, InputError):
            continue
        if request.instance == instance:
            yield parts[1], request


def _is_named(database: Database, run_id: str) -> bool:
    try:
        with database.read() as session:
            runs.get(session, run_id)
    except UnknownItem:
        return False
    return True


def _is_stale(store: ObjectStore, keys: list[str], grace_s: float) -> bool:
    """Return whether nothing has written to these folders for so long."""
    for key in keys:
        # Whoever writes a checkpoint also writes to the journal beside it.
        if key.count("/") > FILE_DEPTH:
            continue
        age = store.measure_age(key)
        if age is not None and age < grace_s:
            return False
    return True
