"""Rebuild the registry from the store: runs, events, adapters, pointers and searches.

A repeated rebuild changes nothing that is right, and no rebuild changes a run that the control
plane wrote. The store is read outside of transactions, so that a slow store blocks nobody.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from jobs.errors import Fault
from jobs.spec.kinds import KINDS
from jobs.store.adapters.listing import READER_THREADS
from jobs.store.adapters.manifest import Manifest, get_manifest_key
from jobs.store.adapters.pointer import get_pointer_key
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from jobs.store.trust.trust_policy import read_trust_policy
from orchestrator.registry import adapters, leases, projects
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseHeld, NameTaken, VersionJumped
from orchestrator.registry.rebuild import restore
from orchestrator.registry.rebuild.identity import Identity, has_history, settle_identity
from orchestrator.registry.rebuild.run_files import RunFiles, list_runs, read_run_files
from orchestrator.registry.rebuild.store_scan import (
    StoreSnapshot,
    list_snapshot_keys,
    read_snapshot,
)
from orchestrator.registry.tenancy import quarantine
from orchestrator.registry.values import DEFAULT_PROJECT

LEASE_NAME = "rebuild"
LEASE_S = 120.0
BATCH_SIZE = 50
"""Runs per transaction: few enough to renew the lease in time, enough to amortise the commit."""

RunListing = tuple[str, frozenset[str]]
"""A run and the names of its files."""
ProgressCallback = Callable[[int], None]
LeasedWrite = Callable[[], AbstractContextManager[Session]]


@dataclass
class RebuildTally:
    """The number of items in the store, and of those that were new or changed."""

    total: int = 0
    changed: int = 0

    def count(self, changed: bool) -> None:
        """Count one item."""
        self.total += 1
        self.changed += changed


@dataclass
class RebuildResult:
    """The result of a rebuild."""

    runs: RebuildTally = field(default_factory=RebuildTally)
    adapters: RebuildTally = field(default_factory=RebuildTally)
    searches: RebuildTally = field(default_factory=RebuildTally)
    events: int = 0
    """Number of new events."""
    removed: list[str] = field(default_factory=list)
    """Adapters that were in the registry and are no longer in the store."""
    faults: list[Fault] = field(default_factory=list)
    """Objects that could not be read."""
    identity: Identity = field(default_factory=Identity)


def rebuild(
    database: Database,
    store: ObjectStore,
    *,
    project: str = DEFAULT_PROJECT,
    instance: str | None = None,
    on_total: ProgressCallback = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
) -> RebuildResult:
    """Restore what the store holds, as that of `project`, whose store it is.

    Runs in quarantine are not read.

    `instance` is the id that the registry takes over, or OWN_INSTANCE. Without it, a registry
    without runs takes over the id that all requests of the store name.
    `on_total` receives the number of runs and objects to read, `on_progress` each number read.
    Raise LeaseHeld while another rebuild runs, and LeaseLost if it was overtaken.
    """
    keys, listings = list_snapshot_keys(store), list(list_runs(store))
    on_total(len(keys) + len(listings))
    with _hold_lease(database) as write:
        with write() as session:
            projects.ensure_project(session, project)
            quarantined = quarantine.find_reasons(session, "run")
            is_new = not has_history(session)
        snapshot = read_snapshot(store, keys, on_progress)
        rebuilder = _Rebuilder(write, store, project, snapshot)
        rebuilder.result.faults += _describe_quarantined(listings, quarantined)
        rebuilder.restore_runs(
            [listing for listing in listings if listing[0] not in quarantined], on_progress
        )
        rebuilder.restore_adapters()
        rebuilder.settle_identity(is_new=is_new, requested=instance)
    return rebuilder.result


def _describe_quarantined(
    listings: Sequence[RunListing], quarantined: Mapping[str, str]
) -> list[Fault]:
    return [
        Fault(
            format_run_key(run),
            f"it is in quarantine: {quarantined[run]}",
            f"Run `slora registry quarantine release run {run}`, then rebuild again.",
        )
        for run, _ in listings
        if run in quarantined
    ]


@contextmanager
def _hold_lease(database: Database) -> Iterator[LeasedWrite]:
    """Hold the lease; yield a function that opens transactions which renew it first."""
    holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
    with database.write() as session:
        lease = leases.acquire(session, LEASE_NAME, holder, seconds=LEASE_S)
    if lease is None:
        raise LeaseHeld(LEASE_NAME)

    @contextmanager
    def write() -> Iterator[Session]:
        with database.write() as session:
            leases.renew(session, lease, seconds=LEASE_S)
            yield session

    try:
        yield write
    finally:
        with database.write() as session:
            leases.release(session, lease)


class _Rebuilder:
    """Writes one store's runs and adapters."""

    def __init__(
        self, write: LeasedWrite, store: ObjectStore, project: str, snapshot: StoreSnapshot
    ) -> None:
        self._write, self._store, self._project = write, store, project
        self._snapshot, self._store_url = snapshot, store.url("")
        self._searches = list[SearchSummary]()
        self._search_of = dict[str, str]()
        """The search of each trial's run."""
        self._accepted_by = Counter[str]()
        """The number of runs that each registry accepted."""
        self.result = RebuildResult(faults=list(snapshot.faults))

    def restore_runs(self, listings: Sequence[RunListing], on_progress: ProgressCallback) -> None:
        # Searches first, because their journals name the runs of their trials.
        spec_file = KINDS["search"].spec_file
        ordered = sorted(listings, key=lambda listing: spec_file not in listing[1])
        for start in range(0, len(ordered), BATCH_SIZE):
            listed = ordered[start : start + BATCH_SIZE]
            batch = self._read_batch(listed)
            on_progress(len(listed))
            with self._write() as session:
                for files in batch:
                    self._restore_run(session, files)

    def restore_adapters(self) -> None:
        """Restore adapters, pointers and searches, and remove what the store no longer holds."""
        with self._write() as session:
            for manifest in self._snapshot.manifests:
                self._restore_adapter(session, manifest)
            session.flush()
            self._restore_pointers(session, self._remove_adapters(session))
            for search in self._searches:
                self.result.searches.count(adapters.put_search(session, search))

    def _restore_adapter(self, session: Session, manifest: Manifest) -> None:
        try:
            changed = adapters.put(session, self._store_url, manifest, project=self._project)
        except (NameTaken, VersionJumped) as refusal:
            key = get_manifest_key(manifest.name, manifest.version)
            self.result.faults.append(Fault(key, str(refusal).rstrip(".")))
            return
        self.result.adapters.count(changed)

    def settle_identity(self, *, is_new: bool, requested: str | None) -> None:
        """Take over the id of the registry that was lost, if it is known."""
        with self._write() as session:
            self.result.identity = settle_identity(
                session, self._accepted_by, is_new=is_new, requested=requested
            )

    def _read_batch(self, listings: Sequence[RunListing]) -> list[RunFiles]:
        with ThreadPoolExecutor(READER_THREADS) as pool:
            items = list(pool.map(lambda listing: read_run_files(self._store, *listing), listings))
        batch = [item for item in items if isinstance(item, RunFiles)]
        for files in batch:
            self._search_of |= dict.fromkeys(files.trials, files.id)
            self._searches += [files.search] if files.search else []
            if files.request is not None and files.request.instance is not None:
                self._accepted_by[files.request.instance] += 1
            self.result.faults += files.faults
        self.result.faults += [item for item in items if isinstance(item, Fault)]
        return batch

    def _restore_run(self, session: Session, files: RunFiles) -> None:
        changed = restore.put_run(
            session,
            files,
            store=self._store_url,
            project=self._project,
            search=self._search_of.get(files.id),
            attempt=self._snapshot.attempts.get(files.id, 0),
            committed=files.id in self._snapshot.committed_runs,
        )
        self.result.runs.count(changed)
        self.result.events += restore.put_events(session, files)

    def _remove_adapters(self, session: Session) -> set[adapters.VersionKey]:
        """Remove the versions that the store no longer holds. Return the others."""
        manifests = self._snapshot.manifests
        existing = {(manifest.name, manifest.version) for manifest in manifests}
        existing |= self._snapshot.unreadable
        known = set[adapters.VersionKey]()
        for adapter in adapters.list_page(session, store=self._store_url, limit=None):
            version_key = adapter.name, adapter.version
            if version_key in existing:
                known.add(version_key)
            else:
                adapters.remove(session, self._store_url, version_key)
                self.result.removed.append(adapter.label)
        return known

    def _restore_pointers(self, session: Session, known: set[adapters.VersionKey]) -> None:
        # A pointer can name a version that is unreadable, or was deleted after it was set.
        valid = {
            name: pointer
            for name, pointer in self._snapshot.pointers.items()
            if (name, pointer.version) in known
        }
        recorded = {
            previous.name: previous.move
            for previous in adapters.list_pointers(session, self._store_url)
        }
        for name, pointer in valid.items():
            move = pointer.moves[-1].number
            if self._is_accepted(name, move, recorded.get(name, 0)):
                adapters.set_pointer(session, self._store_url, name, pointer.version, move)
        for name in recorded.keys() - valid.keys() - self._snapshot.unreadable_pointers:
            if self._is_accepted(name, 0, recorded[name]):
                adapters.remove_pointer(session, self._store_url, name)

    def _is_accepted(self, name: str, move: int, recorded: int) -> bool:
        """Report a pointer that is older than the registry's, which a trust policy refuses."""
        if move >= recorded or read_trust_policy() is None:
            return True
        state = f"the pointer is at move {move}" if move else "there is no pointer"
        problem = f"{state}, but the registry has seen move {recorded}"
        remedy = f"Promote a version with the key: `slora adapters promote {name}@v2`."
        self.result.faults.append(Fault(get_pointer_key(name), problem, remedy))
        return False
