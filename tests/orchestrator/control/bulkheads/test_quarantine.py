"""Items in quarantine are skipped by every loop; what was looked at in two deaths is put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import InputError
from jobs.store.open import open_store
from orchestrator.cluster.base import Job
from orchestrator.control.bulkheads.bulkhead import make_bulkhead
from orchestrator.control.bulkheads.look_keeper import LookKeeper
from orchestrator.registry import runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.tenancy import looks, quarantine
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor, AuditEntry, list_entries
from orchestrator.registry.tenancy.looks import Look, LookVerdict
from orchestrator.registry.tenancy.quarantine import ItemKind
from tests.orchestrator.control.control import RUNNING, ControlHarness
from tests.orchestrator.control.test_orphans import OURS, forget_all
from tests.orchestrator.control.test_scheduler import HOUR, START, SchedulerHarness

CLEAR, BUSY, QUARANTINED = LookVerdict.CLEAR, LookVerdict.BUSY, LookVerdict.QUARANTINED


def put(database: Database, kind: ItemKind, item: str) -> None:
    with database.write() as session:
        quarantine.add(session, kind, item, reason="it is a pill")


def release(database: Database, kind: ItemKind, item: str) -> None:
    with database.write() as session:
        quarantine.release(session, kind, item)


def die_looking(database: Database, holder: str, item: str = "pill") -> LookVerdict:
    """Begin a look in a process that never ends it."""
    with database.write() as session:
        return looks.begin(session, Look(f"loop/{holder}", holder, "run", item), timeout_s=30)


def count_looks(database: Database) -> int:
    with database.read() as session:
        return session.scalar(text("SELECT count(*) FROM looks WHERE kind <> 'process'")) or 0


def test_a_planned_run_in_quarantine_fails_and_the_others_start(control: ControlHarness):
    pill, good = control.submit("pill"), control.submit("good")
    put(control.database, "run", pill.id)
    control.reconcile()
    ended = control.read(pill)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.QUARANTINED)
    assert ended.detail == "it is a pill" and control.list_submissions(pill) == []
    assert control.read_status(good) is Status.SUBMITTED


def test_an_active_run_in_quarantine_is_stopped_and_fails(control: ControlHarness):
    pill, good = control.submit("pill"), control.submit("good")
    control.reconcile(2)
    put(control.database, "run", pill.id)
    control.reconcile()
    assert {*control.cluster.stopped_ids} == {f"{pill.id}-a1"}
    assert control.read(pill).reason is Reason.QUARANTINED
    assert control.read_status(good) is Status.RUNNING


def test_a_job_in_quarantine_is_neither_adopted_nor_stopped(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    forget_all(control)
    control.cluster.add_foreign_job(Job("stray-a1", "jobs.finetune", (), OURS), RUNNING)
    for submission in (f"{run.id}-a1", "stray-a1"):
        put(control.database, "job", submission)
    control.reconcile(2)
    assert control.cluster.stopped_ids == []
    with pytest.raises(UnknownItem):
        control.read(run)
    release(control.database, "job", f"{run.id}-a1")
    control.reconcile(2)
    assert control.read_status(run) is Status.RUNNING and control.cluster.stopped_ids == []


def test_a_job_in_quarantine_outlives_its_run(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    put(control.database, "job", f"{run.id}-a1")
    with control.database.write() as session:
        runs.move(session, runs.get(session, run.id), Status.FAILED, reason=Reason.CRASHED)
    control.reconcile()
    assert control.cluster.stopped_ids == []
    release(control.database, "job", f"{run.id}-a1")
    control.reconcile()
    assert control.cluster.stopped_ids == [f"{run.id}-a1"]


def test_a_schedule_in_quarantine_does_not_fire_and_hides_no_other(
    database: Database, tmp_path: Path
):
    harness = SchedulerHarness(database, f"file://{tmp_path}/store")
    harness.add("pill"), harness.add("good")
    put(database, "schedule", "default/pill")
    with database.read() as session:
        due = schedules.list_due(session, by=START + HOUR)
    assert [schedule.name for schedule in due] == ["good"], "it would take one of 100 places"
    assert harness.fire_at(1) == 1
    assert (harness.list_outcomes("pill"), harness.list_outcomes("good")) == ([], ["run"])
    release(database, "schedule", "default/pill")
    assert harness.fire_at(1) == 1 and harness.list_outcomes("pill") == ["run"]


def read_newest_entry(database: Database) -> AuditEntry:
    with database.read() as session:
        return list_entries(session, limit=1)[0]


def test_who_adds_and_releases_an_item_is_in_the_audit_log(database: Database):
    actor = Actor(label="local:ops")
    with database.write() as session:
        quarantine.add(
            session, "schedule", "lab/nightly", reason="a pill", project="lab", actor=actor
        )
    entry = read_newest_entry(database)
    assert (entry.action, entry.object_kind, entry.object, entry.project, entry.label) == (
        *("quarantine", "schedule", "lab/nightly", "lab", "local:ops"),
    )
    assert entry.after == {"reason": "a pill"}
    with database.write() as session:
        released = quarantine.release(session, "schedule", "lab/nightly", actor=actor)
    assert released.by_label == "local:ops"
    entry = read_newest_entry(database)
    assert (entry.action, entry.object, entry.label) == ("release", "lab/nightly", "local:ops")
    assert entry.before == {"reason": "a pill"} and entry.after is None


def test_a_quarantine_after_deaths_is_recorded_as_the_service(database: Database):
    for holder in ("first", "second", "third"):
        die_looking(database, holder)
    entry = read_newest_entry(database)
    assert (entry.action, entry.object_kind, entry.object) == ("quarantine", "run", "pill")
    assert (entry.token, entry.label) == (SERVICE.token, SERVICE.label)


def test_one_death_is_no_proof_and_two_in_a_row_are(database: Database):
    assert die_looking(database, "first") is CLEAR
    assert die_looking(database, "second") is CLEAR
    assert die_looking(database, "third") is QUARANTINED
    with database.read() as session:
        (item,) = quarantine.list_items(session)
    assert (item.kind, item.item) == ("run", "pill") and "2 processes" in item.reason
    assert count_looks(database) == 0
    assert die_looking(database, "third", "other") is CLEAR


def test_a_look_that_ends_well_breaks_the_row_of_deaths(database: Database):
    die_looking(database, "first")
    with LookKeeper(database, "cluster default", "second").look("run", "pill") as verdict:
        assert verdict is CLEAR
    die_looking(database, "third")
    assert die_looking(database, "fourth") is CLEAR


def fail_looking(keeper: LookKeeper) -> None:
    with keeper.look("run", "pill") as verdict:
        assert verdict is CLEAR
        raise RecursionError


def test_an_error_during_a_look_is_no_death(database: Database):
    for holder in ("first", "second", "third"):
        keeper = LookKeeper(database, "cluster default", holder)
        with pytest.raises(RecursionError):
            fail_looking(keeper)
    assert count_looks(database) == 0


def test_what_a_live_process_looks_at_is_left_to_it(database: Database):
    with database.write() as session:
        looks.beat(session, "first")
    die_looking(database, "first")
    for _ in range(3):
        assert die_looking(database, "second") is BUSY
    with database.write() as session:
        session.execute(text("UPDATE looks SET started_at = started_at - 60"))
    assert die_looking(database, "second") is CLEAR
    with database.write() as session:
        looks.beat(session, "second")
    assert die_looking(database, "third") is BUSY
    with database.write() as session:
        looks.end_process(session, "second")
    assert die_looking(database, "third") is QUARANTINED


def test_a_process_that_ends_by_request_proves_nothing(database: Database):
    for holder in ("first", "second", "third"):
        keeper = make_bulkhead(database, "cluster default", holder=holder).looks
        with keeper.look("run", "pill") as verdict:
            assert verdict is CLEAR
            keeper.close()
            assert count_looks(database) == 0
        with keeper.look("run", "another") as verdict:
            assert verdict is BUSY, "a process that ends begins no look"


def test_a_release_forgets_the_deaths(database: Database):
    for holder in ("first", "second", "third"):
        die_looking(database, holder)
    release(database, "run", "pill")
    assert die_looking(database, "fourth") is CLEAR
    with pytest.raises(UnknownItem):
        release(database, "run", "pill")


def test_old_looks_of_dead_processes_are_deleted(database: Database):
    die_looking(database, "first")
    with database.write() as session:
        looks.delete_expired(session)
    assert count_looks(database) == 1
    with database.write() as session:
        session.execute(text("UPDATE looks SET started_at = started_at - :s"),
                        {"s": looks.RETENTION_S + 1})  # fmt: skip
        looks.delete_expired(session)
    assert count_looks(database) == 0


@pytest.mark.parametrize(
    ("kind", "item"), [("cat", "x"), ("run", ""), ("run", "x" * 161), ("schedule", "x"),
                       ("job", "a\nb")]
)  # fmt: skip
def test_an_impossible_item_is_refused(kind: Any, item: str):
    with pytest.raises(InputError):
        quarantine.check_item(kind, item)


def test_a_dead_dispatcher_blames_the_run_that_it_checked(control: ControlHarness):
    pill, good = control.submit("pill", priority=9), control.submit("good")

    for holder in ("first", "second"):
        die_looking(control.database, holder, pill.id)
    control.reconcile(2)
    assert control.read(pill).reason is Reason.QUARANTINED
    assert control.read_status(good) is not Status.PLANNED


def test_a_run_in_quarantine_is_not_restored_from_its_store(control: ControlHarness):
    pill, good = control.submit("pill"), control.submit("good")
    forget_all(control)
    put(control.database, "run", pill.id)
    result = rebuild(control.database, open_store(control.store))
    assert [fault.key for fault in result.faults] == [f"runs/{pill.id}/"]
    assert control.read_status(good) is Status.PLANNED
    with pytest.raises(UnknownItem):
        control.read(pill)
    release(control.database, "run", pill.id)
    assert rebuild(control.database, open_store(control.store)).faults == []
    assert control.read_status(pill) is Status.PLANNED
