"""The registry from the store: runs, adapters, searches as their papers tell them.

Asked again it changes nothing that is right already, and it never touches a run that the control
plane has moved itself. The store is read before a transaction begins, so a slow one blocks nobody.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from jobs.errors import Fault
from jobs.store.adapters.listing import READER_THREADS
from jobs.store.base import ObjectStore
from orchestrator.registry import adapters, leases, projects
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseHeld
from orchestrator.registry.leases import Lease
from orchestrator.registry.rebuild import restore
from orchestrator.registry.rebuild.run_files import RunFiles, list_runs, read_run_files
from orchestrator.registry.rebuild.search_files import SEARCH_FILE
from orchestrator.registry.rebuild.store_scan import (
    StoreSnapshot,
    list_snapshot_keys,
    read_snapshot,
)
from orchestrator.registry.values import DEFAULT_PROJECT

LEASE_NAME = "rebuild"
LEASE_S = 120.0
BATCH_SIZE = 50
"""Runs in one transaction: so few that the lease is renewed in time, so many that the disk is not
waited for once a run."""

RunListing = tuple[str, frozenset[str]]


@dataclass
class RebuildTally:
    """How many were found in the store, and how many of them were news to the registry."""

    total: int = 0
    changed: int = 0

    def count(self, changed: bool) -> None:
        """One more."""
        self.total += 1
        self.changed += changed


@dataclass
class RebuildResult:
    """What a rebuild came to."""

    runs: RebuildTally = field(default_factory=RebuildTally)
    adapters: RebuildTally = field(default_factory=RebuildTally)
    searches: RebuildTally = field(default_factory=RebuildTally)
    events: int = 0
    """New ones."""
    removed: list[str] = field(default_factory=list)
    """Adapters that the registry had and the store has no more."""
    faults: list[Fault] = field(default_factory=list)
    """What is there and could not be read."""


class _LeasedTransactions:
    """Transactions under the lease, which each of them renews first."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self._database, self._lease = database, lease

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._database.write() as session:
            self._lease = leases.renew(session, self._lease, seconds=LEASE_S)
            yield session

    def release(self) -> None:
        with self._database.write() as session:
            leases.release(session, self._lease)


def rebuild(
    database: Database,
    store: ObjectStore,
    *,
    project: str = DEFAULT_PROJECT,
    on_total: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> RebuildResult:
    """Restore what the store knows; runs and adapters that are new go to `project`.

    `started` is told how many papers and manifests there are, `seen` of each one. Raises Held
    where another rebuild is at work.
    """
    keys, listings = list_snapshot_keys(store), list(list_runs(store))
    on_total(len(keys) + len(listings))
    with _hold_lease(database) as transactions:
        with transactions.write() as session:
            projects.ensure_project(session, project)
        snapshot = read_snapshot(store, keys, on_progress)
        result = RebuildResult(faults=list(snapshot.faults))
        store_url = store.url("")
        searches = _restore_runs(
            transactions,
            store,
            listings,
            snapshot,
            result,
            project=project,
            on_progress=on_progress,
        )
        with transactions.write() as session:
            _restore_adapters(session, store_url, snapshot, result, project)
            for search in searches:
                result.searches.count(adapters.put_search(session, search))
    return result


def _restore_runs(
    transactions: _LeasedTransactions,
    store: ObjectStore,
    listings: Sequence[RunListing],
    snapshot: StoreSnapshot,
    result: RebuildResult,
    *,
    project: str,
    on_progress: Callable[[int], None],
) -> list[SearchSummary]:
    """Searches first, because their journals say whose trials other runs are."""
    searches: list[SearchSummary] = []
    trials: dict[str, str] = {}
    ordered = sorted(listings, key=lambda listing: SEARCH_FILE not in listing[1])
    for start in range(0, len(ordered), BATCH_SIZE):
        batch = _read_batch(store, ordered[start : start + BATCH_SIZE], result, on_progress)
        for files in batch:
            trials |= dict.fromkeys(files.trials, files.id)
            searches += [files.search] if files.search else []
        with transactions.write() as session:
            for files in batch:
                changed = restore.put_run(
                    session,
                    files,
                    store=store.url(""),
                    project=project,
                    search=trials.get(files.id),
                    attempt=snapshot.attempts.get(files.id, 0),
                    committed=files.id in snapshot.committed_runs,
                )
                result.runs.count(changed)
                result.events += restore.put_events(session, files)
    return searches


def _read_batch(
    store: ObjectStore,
    listings: Sequence[RunListing],
    result: RebuildResult,
    on_progress: Callable[[int], None],
) -> list[RunFiles]:
    with ThreadPoolExecutor(READER_THREADS) as pool:
        items = list(pool.map(lambda item: read_run_files(store, *item), listings))
    on_progress(len(listings))
    batch = [item for item in items if isinstance(item, RunFiles)]
    result.faults += [item for item in items if isinstance(item, Fault)]
    result.faults += [fault for files in batch for fault in files.faults]
    return batch


def _restore_adapters(
    session: Session, store_url: str, snapshot: StoreSnapshot, result: RebuildResult, project: str
) -> None:
    for manifest in snapshot.manifests:
        result.adapters.count(adapters.put(session, store_url, manifest, project=project))
    session.flush()
    existing = {(entry.name, entry.version) for entry in snapshot.manifests} | snapshot.unreadable
    for adapter in adapters.list_page(session, store=store_url, limit=None):
        if (adapter.name, adapter.version) not in existing:
            adapters.remove(session, store_url, (adapter.name, adapter.version))
            result.removed.append(adapter.label)
    _restore_pointers(session, store_url, snapshot)


def _restore_pointers(session: Session, store_url: str, snapshot: StoreSnapshot) -> None:
    known = {
        (adapter.name, adapter.version)
        for adapter in adapters.list_page(session, store=store_url, limit=None)
    }
    valid = {
        name: pointer
        for name, pointer in snapshot.pointers.items()
        # To a version that can't be read, or was removed behind the pointer's back.
        if (name, pointer.version) in known
    }
    for name, pointer in valid.items():
        adapters.set_pointer(session, store_url, name, pointer.version, pointer.moves[-1].number)
    for previous in adapters.list_pointers(session, store_url):
        if previous.name not in valid and previous.name not in snapshot.unknown_pointers:
            adapters.remove_pointer(session, store_url, previous.name)


@contextmanager
def _hold_lease(database: Database) -> Iterator[_LeasedTransactions]:
    holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
    with database.write() as session:
        lease = leases.acquire(session, LEASE_NAME, holder, seconds=LEASE_S)
    if lease is None:
        raise LeaseHeld(LEASE_NAME)
    transactions = _LeasedTransactions(database, lease)
    try:
        yield transactions
    finally:
        transactions.release()
