"""Leases on both databases: one holder, take-over after the end, numbers that fence."""

from __future__ import annotations

import threading
from multiprocessing.synchronize import Barrier

import pytest

from jobs.errors import InputError
from orchestrator.registry import leases, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseLost
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Status
from tests.jobs.store.builders import race
from tests.orchestrator.registry.builders import add_run, age_leases, read_rows

RACERS = 4


def acquire_lease(database: Database, holder: str, name: str = "reconciler") -> Lease | None:
    with database.write() as session:
        return leases.acquire(session, name, holder, seconds=60)


def is_held(database: Database, holder: str) -> Lease:
    lease = acquire_lease(database, holder)
    assert lease is not None
    return lease


def test_a_lease_has_one_holder(database: Database):
    lease = is_held(database, "a")
    assert lease.fence == 1
    assert acquire_lease(database, "b") is None
    assert acquire_lease(database, "a") is None
    assert acquire_lease(database, "b", "scheduler") is not None


def test_an_expired_lease_is_acquired_under_the_next_number(database: Database):
    old = is_held(database, "a")
    age_leases(database, 59)
    assert acquire_lease(database, "b") is None
    age_leases(database, 2)
    assert is_held(database, "b").fence == old.fence + 1
    with database.write() as session, pytest.raises(LeaseLost, match="a no longer holds the lease"):
        leases.renew(session, old, seconds=60)


def test_renewing_keeps_the_number_and_extends_the_lease(database: Database):
    lease = is_held(database, "a")
    age_leases(database, 30)
    with database.write() as session:
        longer = leases.renew(session, lease, seconds=60)
    assert longer.fence == lease.fence
    age_leases(database, 45)
    assert acquire_lease(database, "b") is None


def test_an_expired_lease_is_lost_even_if_nobody_acquired_it(database: Database):
    lease = is_held(database, "a")
    age_leases(database, 61)
    with database.write() as session, pytest.raises(LeaseLost):
        leases.renew(session, lease, seconds=60)
    with database.write() as session, pytest.raises(LeaseLost):
        leases.guard(session, lease)


def test_a_released_lease_is_free_at_once_and_its_number_grows(database: Database):
    lease = is_held(database, "a")
    with database.write() as session:
        leases.release(session, lease)
    second = is_held(database, "a")
    assert second.fence == 2
    # A late release by the first holder does not end the lease of the second.
    with database.write() as session:
        leases.release(session, lease)
    assert acquire_lease(database, "b") is None


def test_a_holder_whose_lease_expired_writes_nothing(database: Database):
    run = add_run(database)
    lease = is_held(database, "a")
    age_leases(database, 61)
    is_held(database, "b")
    with pytest.raises(LeaseLost), database.write() as session:
        runs.move(session, run, Status.SUBMITTED, lease=lease)
    (row,) = read_rows(database, "runs")
    assert row["status"] == "planned"


def test_a_new_holder_waits_for_the_write_of_the_old_one(database: Database):
    """Otherwise an old holder could write after the first write of the new one."""
    run = add_run(database)
    with database.write() as session:
        lease = leases.acquire(session, "reconciler", "a", seconds=1.0)
        assert lease is not None
    guarded, statuses = threading.Event(), list[str]()

    def take_over() -> None:
        guarded.wait()
        while acquire_lease(database, "b") is None:
            pass
        with database.read() as session:
            statuses.append(runs.get(session, run.id).status.value)

    thread = threading.Thread(target=take_over)
    thread.start()
    with database.write() as session:
        leases.guard(session, lease)
        guarded.set()
        # Longer than the lease, which expires during the write.
        thread.join(timeout=1.5)
        assert thread.is_alive()
        runs.move(session, run, Status.SUBMITTED)
    thread.join()
    assert statuses == ["submitted"]


def _acquire(start: Barrier, mine: int, url: str) -> None:
    database = Database(url)
    start.wait()
    if acquire_lease(database, f"h{mine}") is None:
        raise SystemExit(7)


@pytest.mark.parametrize("before", ["nobody", "one that lapsed"])
def test_one_of_several_processes_acquires_a_lease(before: str, database: Database, url: str):
    if before != "nobody":
        is_held(database, "old")
        age_leases(database, 61)
    codes = race(_acquire, url, count=RACERS)
    assert sorted(codes, key=str) == [0] + [7] * (RACERS - 1)
    (row,) = read_rows(database, "leases")
    assert row["holder"] == f"h{codes.index(0)}"
    assert row["fence"] == (1 if before == "nobody" else 2)


@pytest.mark.parametrize("name", ["", "a b", "a\x00", "x" * 129], ids=ascii)
def test_a_hostile_name_is_refused_for_a_lease_and_a_holder(name: str, database: Database):
    with database.write() as session, pytest.raises(InputError, match="not a valid name"):
        leases.acquire(session, name, "a", seconds=60)
    with database.write() as session, pytest.raises(InputError, match="not a valid name"):
        leases.acquire(session, "a", name, seconds=60)
