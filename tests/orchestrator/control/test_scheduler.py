"""Each due time fires once with its run, whichever scheduler fires it and whatever fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import StoreUnreachable
from jobs.places.places import Places
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from orchestrator.control.cron import MAX_MISSED_TIMES
from orchestrator.control.intake import Intake
from orchestrator.control.looking.fingerprints import Fingerprints
from orchestrator.control.looking.look_protocol import LookLimits
from orchestrator.control.looking.look_runner import LookRunner
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.new_data import compute_data_fingerprint
from orchestrator.control.scheduler import Scheduler, find_next_firing
from orchestrator.control.shares.firing_order import FiringBudget, FiringOrder
from orchestrator.registry import projects, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.schedules import NewSchedule, Schedule
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor, list_entries
from orchestrator.registry.values import ProjectInputs, ProjectLimits, Run
from tests.orchestrator.control.builders import make_spec, open_project
from tests.orchestrator.control.clock import SettableClock
from tests.orchestrator.control.misbehaving_child import MODULE
from tests.orchestrator.registry.builders import add_run, age_leases, list_runs
from tests.waiting import wait_for

START = datetime.fromisoformat("2026-01-10T00:00:00+00:00").timestamp()
HOUR = 3600.0


class SchedulerHarness:
    """A scheduler on a settable clock, and its outcomes."""

    def __init__(self, database: Database, store: str) -> None:
        self.database, self.store = database, store
        self.clock = SettableClock(START)
        self.fingerprints: dict[str, str | None] = {}
        self.places: dict[str, Places | None] = {}
        """The places under which the data of a project was looked at last."""
        self.open: Callable[[str], Any] = open_store
        self.main = self.make_scheduler("a")

    def make_scheduler(
        self,
        holder: str,
        fingerprint: Callable[[str, str, Places | None], str | None] | None = None,
        order: FiringOrder | None = None,
    ) -> Scheduler:
        intake = Intake(self.database, [self.store], ["default"])
        return Scheduler(
            self.database,
            intake,
            self.clock,
            holder=holder,
            metrics=ServiceMetrics(),
            store_opener=lambda url: self.open(url),
            fingerprinter=fingerprint or self.find_fingerprint,
            order=order,
        )

    def find_fingerprint(self, project: str, location: str, places: Places | None) -> str | None:
        self.places[project] = places
        return self.fingerprints.get(location)

    def add(self, name: str = "nightly", by: Actor = SERVICE, **changes: Any) -> Schedule:
        values = {"cron": "0 * * * *", "kind": "finetune", "spec": make_spec(self.store), **changes}
        new = NewSchedule(name=name, **values)
        with self.database.write() as session:
            return schedules.add(session, new, next_at=find_next_firing(new, START), by=by)

    def fire_at(self, hours: float) -> int:
        self.clock.at = START + hours * HOUR
        return self.main.fire_due()

    def list_outcomes(self, name: str = "nightly") -> list[str]:
        with self.database.read() as session:
            schedule = schedules.get(session, "default", name)
            return [
                firing.outcome for firing in reversed(schedules.list_firings(session, schedule))
            ]

    def list_runs(self) -> list[Run]:
        with self.database.read() as session:
            return list(reversed(list_runs(session)))

    def finish(self, run: Run, status: Status = Status.DONE) -> None:
        path = [Status.SUBMITTED, Status.PUBLISHING, status]
        with self.database.write() as session:
            for target in path:
                run = runs.move(session, run, target)


@pytest.fixture
def harness(database: Database, tmp_path: Path) -> SchedulerHarness:
    return SchedulerHarness(database, DirectoryStore(tmp_path / "store").url(""))


def test_a_due_time_fires_once_and_the_next_one_follows(harness: SchedulerHarness):
    harness.add(concurrency="queue")
    assert harness.fire_at(0.9) == 0
    assert harness.fire_at(1) == 1 and harness.fire_at(1) == 0 and harness.fire_at(1.5) == 0
    assert harness.fire_at(2) == 1
    assert harness.list_outcomes() == ["run", "queued"] and len(harness.list_runs()) == 2


def test_the_run_of_a_firing_has_its_request_in_the_store(harness: SchedulerHarness):
    harness.add()
    harness.fire_at(1)
    (run,) = harness.list_runs()
    assert run.id.startswith("chat-20260110-010000-") and run.status is Status.PLANNED
    assert open_store(harness.store).head(f"runs/{run.id}/request.json") is not None


def test_the_next_due_time_is_skipped_while_a_run_is_active(harness: SchedulerHarness):
    harness.add(concurrency="skip")
    harness.fire_at(1), harness.fire_at(2)
    harness.finish(harness.list_runs()[0])
    harness.fire_at(3)
    assert harness.list_outcomes() == ["run", "skipped", "run"] and len(harness.list_runs()) == 2


def test_a_skipped_due_time_is_not_a_run_after_a_rebuild(harness: SchedulerHarness):
    harness.add(concurrency="skip")
    harness.fire_at(1), harness.fire_at(2)
    before = [run.id for run in harness.list_runs()]
    rebuild(harness.database, open_store(harness.store))
    assert [run.id for run in harness.list_runs()] == before and len(before) == 1


def test_a_newer_firing_replaces_the_previous_run(harness: SchedulerHarness):
    harness.add(concurrency="replace")
    harness.fire_at(1), harness.fire_at(2)
    old, new = harness.list_runs()
    assert old.stop == Reason.REPLACED and new.stop is None
    assert harness.list_outcomes() == ["run", "queued"]


def test_what_a_firing_does_is_in_the_audit_log_under_its_schedule(harness: SchedulerHarness):
    maker = Actor(token="0123456789abcdef", label="ci")
    harness.add(concurrency="replace", by=maker)
    harness.fire_at(1), harness.fire_at(2)
    old, new = harness.list_runs()
    with harness.database.read() as session:
        entries = [entry for entry in list_entries(session) if entry.object_kind == "run"]
    assert [(entry.action, entry.object) for entry in entries] == [
        ("stop", old.id),
        ("submit", new.id),
        ("submit", old.id),
    ]
    for entry in entries:
        assert (entry.token, entry.label, entry.address) == (None, None, None)
        assert entry.after is not None and entry.after["schedule"] == "nightly"
    assert (new.by_token, new.by_label) == (maker.token, maker.label)


@pytest.mark.parametrize(
    ("missed", "fired"), [("all", ["run", *["queued"] * 4]), ("latest", ["run"]), ("skip", [])]
)
def test_missed_due_times_fire_by_the_policy(
    harness: SchedulerHarness, missed: str, fired: list[str]
):
    harness.add(concurrency="queue", missed=missed)
    harness.fire_at(5.5)
    assert [outcome for outcome in harness.list_outcomes() if outcome != "skipped"] == fired
    with harness.database.read() as session:
        assert schedules.get(session, "default", "nightly").next_at == START + 6 * HOUR
    harness.fire_at(6)
    assert len(harness.list_runs()) == len(fired) + 1


def test_only_the_latest_of_many_missed_due_times_fires(harness: SchedulerHarness):
    schedule = harness.add(cron="* * * * *", concurrency="queue", missed="latest")
    harness.fire_at(1100 / 60)
    harness.fire_at(1100 / 60)
    with harness.database.read() as session:
        (firing,) = schedules.list_firings(session, schedule)
    assert firing.due_at == START + 1100 * 60 and len(harness.list_runs()) == 1


def test_no_run_starts_without_new_data(harness: SchedulerHarness):
    harness.add(only_new_data=True)
    harness.fire_at(1)
    harness.fingerprints["/data/train.jsonl"] = "a" * 64
    harness.fire_at(2)
    harness.finish(harness.list_runs()[0])
    harness.fire_at(3)
    harness.fingerprints["/data/train.jsonl"] = "b" * 64
    harness.fire_at(4)
    assert harness.list_outcomes() == ["no_new_data", "run", "no_new_data", "run"]


def test_the_data_of_a_schedule_is_looked_at_within_the_places_of_its_project(
    harness: SchedulerHarness,
):
    inputs = ProjectInputs(places=("/data",), models=("/models",))
    with harness.database.write() as session:
        projects.add(session, "lab", ProjectLimits(), inputs)
    spec = {**make_spec(harness.store), "model": {"path": "/models/tiny"}}
    harness.add(project="lab", only_new_data=True, spec=spec)
    harness.add("own", only_new_data=True)
    assert harness.fire_at(1) == 2
    places = harness.places["lab"]
    assert places is not None and harness.places["default"] is None
    assert (places.data, places.store) == (("/data",), f"{harness.store}/projects/lab")


def test_new_data_during_a_run_starts_the_next_run(harness: SchedulerHarness):
    harness.add(only_new_data=True)
    harness.fingerprints["/data/train.jsonl"] = "a" * 64
    harness.fire_at(1)
    harness.fingerprints["/data/train.jsonl"] = "b" * 64
    harness.fire_at(2)
    harness.finish(harness.list_runs()[0])
    harness.fire_at(3)
    assert harness.list_outcomes() == ["run", "skipped", "run"]


def test_a_paused_schedule_does_not_fire(harness: SchedulerHarness):
    schedule = harness.add()
    with harness.database.write() as session:
        schedules.update_schedule(session, schedule, paused=True)
    assert harness.fire_at(3) == 0


def test_an_offset_moves_every_due_time_by_the_same(harness: SchedulerHarness):
    schedule = harness.add(jitter_s=600.0, missed="all", concurrency="queue")
    first = schedule.next_at
    assert first is not None and 0 < first % HOUR < 600
    harness.fire_at(4)
    with harness.database.read() as session:
        due = [firing.due_at for firing in schedules.list_firings(session, schedule)]
    assert due == [first + hours * HOUR for hours in range(len(due))][::-1] and len(due) == 4


def test_a_schedule_with_an_invalid_spec_is_refused_at_each_due_time(harness: SchedulerHarness):
    harness.add(cluster="removed")
    harness.fire_at(1), harness.fire_at(2)
    assert harness.list_outcomes() == ["refused", "refused"] and harness.list_runs() == []


def test_a_schedule_with_impossible_data_does_not_block_others(harness: SchedulerHarness):
    def fingerprint(project: str, location: str, places: Places | None) -> str | None:
        return compute_data_fingerprint("s3:///nowhere") if "wrong" in location else "a" * 64

    harness.main = harness.make_scheduler("a", fingerprint)
    wrong = {**make_spec(harness.store), "data": {"train": "/wrong.jsonl", "max_length": 64}}
    harness.add("wrong", only_new_data=True, spec=wrong, cron="30 0 * * *")
    harness.add(only_new_data=True)
    assert harness.fire_at(1) == 2
    assert harness.list_outcomes("wrong") == ["refused"] and harness.list_outcomes() == ["run"]


def test_data_that_take_long_to_look_at_do_not_delay_other_schedules(
    harness: SchedulerHarness, open_folder: Path
):
    os.mkfifo(pipe := open_folder / "slow.jsonl")
    looks = LookRunner(module=MODULE, limits=LookLimits(wall_s=3600))
    harness.main = harness.make_scheduler("a", Fingerprints(looks))
    slow = {**make_spec(harness.store), "data": {"train": str(pipe), "max_length": 64}}
    harness.add("slow", only_new_data=True, spec=slow, cron="30 0 * * *")
    harness.add()
    assert harness.fire_at(1) == 1 and harness.list_outcomes() == ["run"]
    assert harness.fire_at(1) == 0 and harness.list_outcomes("slow") == []
    pipe.write_text("f" * 64)
    assert wait_for(lambda: harness.fire_at(1) or None, timeout_s=300) == 1
    assert harness.list_outcomes("slow") == ["run"]
    looks.close()


def test_a_schedule_whose_data_cannot_be_checked_is_refused(
    harness: SchedulerHarness, open_folder: Path
):
    looks = LookRunner(module=MODULE)
    harness.main = harness.make_scheduler("a", Fingerprints(looks))
    crash = {**make_spec(harness.store), "data": {"train": "/crash", "max_length": 64}}
    harness.add(only_new_data=True, spec=crash)
    assert wait_for(lambda: harness.fire_at(1) or None, timeout_s=300) == 1
    assert harness.list_outcomes() == ["refused"]
    looks.close()


def test_a_due_time_is_not_lost_while_the_store_is_unreachable(harness: SchedulerHarness):
    harness.add()

    def fail(url: str) -> Any:
        raise StoreUnreachable("the store does not answer")

    harness.open = fail
    assert harness.fire_at(1) == 0 and harness.list_outcomes() == []
    harness.open = open_store
    assert harness.fire_at(1.01) == 1 and harness.list_outcomes() == ["run"]


def test_one_of_two_schedulers_fires_and_the_other_takes_over(harness: SchedulerHarness):
    harness.add(concurrency="queue")
    other = harness.make_scheduler("b")
    harness.fire_at(1)
    harness.clock.at = START + 2 * HOUR
    assert other.fire_due() == 0
    age_leases(harness.database, 60)
    assert other.fire_due() == 1
    assert harness.list_outcomes() == ["run", "queued"]


def test_a_scheduler_that_lost_its_lease_fires_nothing(harness: SchedulerHarness):
    harness.add(concurrency="queue")
    harness.fire_at(0.5)
    age_leases(harness.database, 60)
    other = harness.make_scheduler("b")
    harness.clock.at = START + HOUR
    assert other.fire_due() == 1
    assert harness.main.fire_due() == 0 and len(harness.list_runs()) == 1


def test_a_firing_that_died_after_its_request_is_completed_by_the_next(harness: SchedulerHarness):
    harness.add()
    harness.fire_at(1)
    (run,) = harness.list_runs()
    # As if it had died after writing the request: neither the run nor the firing is recorded.
    with harness.database.write() as session:
        session.execute(text("DELETE FROM firings"))
        session.execute(text("DELETE FROM events"))
        session.execute(text("DELETE FROM runs"))
        session.execute(text("UPDATE schedules SET next_at = :at"), {"at": START + HOUR})
    assert harness.fire_at(1) == 1 and [fired.id for fired in harness.list_runs()] == [run.id]
    assert harness.list_outcomes() == ["run"]


def set_limits(harness: SchedulerHarness, **limits: int) -> None:
    with harness.database.write() as session:
        project = projects.ensure_project(session, "default")
        projects.set_limits(session, project, ProjectLimits(**limits))


def test_a_firing_above_a_quota_starts_nothing_and_the_next_one_does(harness: SchedulerHarness):
    harness.add(concurrency="queue")
    set_limits(harness, max_queued=1)
    harness.fire_at(1), harness.fire_at(2)
    harness.finish(harness.list_runs()[0])
    harness.fire_at(3)
    assert harness.list_outcomes() == ["run", "over_quota", "run"]
    assert len(harness.list_runs()) == 2
    # Nothing of the second firing is left for a rebuild to restore.
    requests = [key for key in open_store(harness.store).list("runs/") if "request" in key]
    assert len(requests) == 2


def test_a_quota_that_is_reached_while_a_schedule_fires_leaves_no_request(
    harness: SchedulerHarness,
):
    harness.add(concurrency="queue")
    set_limits(harness, max_queued=1)

    def open_after_a_submission(url: str) -> Any:
        """Open the store; meanwhile somebody else submits the last run of the quota."""
        if not harness.list_runs():
            add_run(harness.database, "theirs")
        return open_store(url)

    harness.open = open_after_a_submission
    harness.fire_at(1)
    assert harness.list_outcomes() == ["over_quota"]
    assert [run.id for run in harness.list_runs()] == ["theirs"]
    assert list(open_store(harness.store).list("runs/")) == []


def test_missed_times_beyond_those_of_a_tick_follow_in_the_next(harness: SchedulerHarness):
    harness.add(missed="all", concurrency="queue")
    fired = [harness.fire_at(24) for _ in range(4)]
    assert fired == [MAX_MISSED_TIMES, MAX_MISSED_TIMES, 24 - 2 * MAX_MISSED_TIMES, 0]
    assert len(harness.list_runs()) == 24


def test_a_schedule_fires_in_the_tick_of_hundreds_of_another_project(harness: SchedulerHarness):
    for number in range(30):
        harness.add(f"many{number}", concurrency="queue")
    open_project(harness.database, "quiet")
    harness.add("single", project="quiet", cron="30 * * * *")
    order = FiringOrder(FiringBudget(firings=2))
    harness.main = harness.make_scheduler("a", order=order)
    assert harness.fire_at(1.6) == 2
    assert {run.project for run in harness.list_runs()} == {"default", "quiet"}
