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
from jobs.store.listing import READERS
from jobs.store.objects import ObjectStore
from orchestrator.registry import adapters, leases, projects, restored
from orchestrator.registry.adapters import SearchFound
from orchestrator.registry.database import Database
from orchestrator.registry.errors import Held
from orchestrator.registry.leases import Lease
from orchestrator.registry.papers import Papers, read_papers, runs_in
from orchestrator.registry.search_papers import SEARCH
from orchestrator.registry.shelf import Shelf, read_shelf, shelf_keys
from orchestrator.registry.values import DEFAULT_PROJECT

LEASE = "rebuild"
LEASE_S = 120.0
BATCH = 50
"""Runs in one transaction: so few that the lease is renewed in time, so many that the disk is not
waited for once a run."""

Named = tuple[str, frozenset[str]]


@dataclass
class Tally:
    """How many were found in the store, and how many of them were news to the registry."""

    found: int = 0
    changed: int = 0

    def count(self, changed: bool) -> None:
        """One more."""
        self.found += 1
        self.changed += changed


@dataclass
class Rebuilt:
    """What a rebuild came to."""

    runs: Tally = field(default_factory=Tally)
    adapters: Tally = field(default_factory=Tally)
    searches: Tally = field(default_factory=Tally)
    events: int = 0
    """New ones."""
    forgotten: list[str] = field(default_factory=list)
    """Adapters that the registry had and the store has no more."""
    faults: list[Fault] = field(default_factory=list)
    """What is there and could not be read."""


class _Desk:
    """Transactions under the lease, which each of them renews first."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self._database, self._lease = database, lease

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._database.write() as session:
            self._lease = leases.renew(session, self._lease, seconds=LEASE_S)
            yield session

    def leave(self) -> None:
        with self._database.write() as session:
            leases.release(session, self._lease)


def rebuild(
    database: Database,
    store: ObjectStore,
    *,
    project: str = DEFAULT_PROJECT,
    started: Callable[[int], None] = lambda _: None,
    seen: Callable[[int], None] = lambda _: None,
) -> Rebuilt:
    """Restore what the store knows; runs and adapters that are new go to `project`.

    `started` is told how many papers and manifests there are, `seen` of each one. Raises Held
    where another rebuild is at work.
    """
    keys, named = shelf_keys(store), list(runs_in(store))
    started(len(keys) + len(named))
    with _desk(database) as desk:
        with desk.write() as session:
            projects.ensure(session, project)
        shelf = read_shelf(store, keys, seen)
        done = Rebuilt(faults=list(shelf.faults))
        place = store.url("")
        found = _restore_runs(desk, store, named, shelf, done, project=project, seen=seen)
        with desk.write() as session:
            _restore_adapters(session, place, shelf, done, project)
            for search in found:
                done.searches.count(adapters.put_search(session, search))
    return done


def _restore_runs(
    desk: _Desk,
    store: ObjectStore,
    named: Sequence[Named],
    shelf: Shelf,
    done: Rebuilt,
    *,
    project: str,
    seen: Callable[[int], None],
) -> list[SearchFound]:
    """Searches first, because their journals say whose trials other runs are."""
    searches: list[SearchFound] = []
    trials: dict[str, str] = {}
    ordered = sorted(named, key=lambda one: SEARCH not in one[1])
    for start in range(0, len(ordered), BATCH):
        batch = _read(store, ordered[start : start + BATCH], done, seen)
        for papers in batch:
            trials |= dict.fromkeys(papers.trials, papers.id)
            searches += [papers.search] if papers.search else []
        with desk.write() as session:
            for papers in batch:
                changed = restored.put_run(
                    session,
                    papers,
                    store=store.url(""),
                    project=project,
                    search=trials.get(papers.id),
                    attempt=shelf.attempts.get(papers.id, 0),
                    committed=papers.id in shelf.done,
                )
                done.runs.count(changed)
                done.events += restored.put_events(session, papers)
    return searches


def _read(
    store: ObjectStore, named: Sequence[Named], done: Rebuilt, seen: Callable[[int], None]
) -> list[Papers]:
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda one: read_papers(store, *one), named))
    seen(len(named))
    read = [one for one in found if isinstance(one, Papers)]
    done.faults += [one for one in found if isinstance(one, Fault)]
    done.faults += [fault for papers in read for fault in papers.faults]
    return read


def _restore_adapters(
    session: Session, place: str, shelf: Shelf, done: Rebuilt, project: str
) -> None:
    for manifest in shelf.manifests:
        done.adapters.count(adapters.put(session, place, manifest, project=project))
    session.flush()
    there = {(one.name, one.version) for one in shelf.manifests} | shelf.unreadable
    for adapter in adapters.page(session, store=place, limit=None):
        if (adapter.name, adapter.version) not in there:
            adapters.forget(session, place, (adapter.name, adapter.version))
            done.forgotten.append(adapter.label)
    _restore_pointers(session, place, shelf)


def _restore_pointers(session: Session, place: str, shelf: Shelf) -> None:
    known = {(one.name, one.version) for one in adapters.page(session, store=place, limit=None)}
    sound = {
        name: pointer
        for name, pointer in shelf.pointers.items()
        # To a version that can't be read, or was removed behind the pointer's back.
        if (name, pointer.version) in known
    }
    for name, pointer in sound.items():
        adapters.point(session, place, name, pointer.version, pointer.moves[-1].number)
    for old in adapters.promoted(session, place):
        if old.name not in sound and old.name not in shelf.unknown_pointers:
            adapters.unpoint(session, place, old.name)


@contextmanager
def _desk(database: Database) -> Iterator[_Desk]:
    holder = f"{os.uname().nodename[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
    with database.write() as session:
        lease = leases.acquire(session, LEASE, holder, seconds=LEASE_S)
    if lease is None:
        raise Held(LEASE)
    desk = _Desk(database, lease)
    try:
        yield desk
    finally:
        desk.leave()
