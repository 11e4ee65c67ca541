"""The drill: restore an older backup, and lose and repeat nothing that the store knows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from orchestrator.control.scheduler import Scheduler, find_next_firing
from orchestrator.registry import runs, schedules
from orchestrator.registry.backup.backup import back_up, restore
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.clock import SettableClock
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness
from tests.orchestrator.registry.builders import age_leases

START = datetime.fromisoformat("2026-01-10T00:00:00+00:00").timestamp()
HOUR = 3600.0
LOAD = 12
"""Submissions in the background of a backup."""


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest) -> None:
    """Put PostgreSQL's programs on the PATH of the tests that use its server."""
    if "postgresql" in request.node.name:
        request.getfixturevalue("postgres_programs")


class Drill:
    """A control plane with a scheduler, which is backed up, killed and restored."""

    def __init__(self, url: str, database: Database, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.clock = SettableClock(START)
        self.use(ControlHarness(database, f"file://{folder / 'store'}"))

    def use(self, control: ControlHarness) -> None:
        """Start a control plane with its own scheduler."""
        self.control = control
        self.scheduler = Scheduler(
            control.database,
            control.intake,
            self.clock,
            holder="s",
            metrics=control.observer,
            fingerprinter=lambda project, location, places: None,
        )

    def add_schedule(self) -> None:
        spec = make_spec(self.control.store, name="hourly")
        new = NewSchedule(
            name="hourly",
            cron="0 * * * *",
            kind="finetune",
            missed="all",
            concurrency="queue",
            spec=spec,
        )
        with self.control.database.write() as session:
            schedules.add(session, new, next_at=find_next_firing(new, START))

    def fire_at(self, hours: float) -> int:
        self.clock.at = START + hours * HOUR
        return self.scheduler.fire_due()

    def list_firings(self) -> dict[float, str | None]:
        with self.control.database.read() as session:
            schedule = schedules.get(session, "default", "hourly")
            return {
                (firing.due_at - START) / HOUR: firing.run
                for firing in schedules.list_firings(session, schedule)
            }

    def read_run(self, hours: float) -> Run:
        """Return the run of a firing."""
        run_id = self.list_firings()[hours]
        assert run_id is not None
        with self.control.database.read() as session:
            return runs.get(session, run_id)

    def finish(self, run: Run) -> None:
        """End the job of a run as a real one does: with a journal and an adapter."""
        control = self.control
        RunStore(open_store(control.store), run.id).events.append({"event": "started"})
        control.commit(run, self.folder / f"adapter-{run.name}")
        control.cluster.play(f"{run.id}-a1", SUCCEEDED)

    def list_runs(self) -> dict[str, Status]:
        with self.control.database.read() as session:
            rows = session.execute(text("SELECT id, status FROM runs"))
            return {row.id: Status(row.status) for row in rows}

    def list_requests(self) -> set[str]:
        keys = open_store(self.control.store).list("runs/")
        return {key.split("/")[1] for key in keys if key.endswith("/request.json")}

    def restore(self, file: Path, *, forget: Callable[[], None] = lambda: None) -> None:
        """Kill the control plane, restore a backup, rebuild what is newer, and start another."""
        cluster = self.control.cluster
        age_leases(self.control.database, 60)
        self.control.database.close()
        restore(self.url, file, replace=True)
        forget()
        database = Database(self.url)
        age_leases(database, 60)  # the backup has the lease of the one that was killed
        rebuild(database, open_store(self.control.store))
        control = ControlHarness(database, self.control.store)
        control.cluster = cluster
        control.main = control.make_reconciler("after")
        self.use(control)


def count_starts(control: ControlHarness) -> Counter[str]:
    """Count the jobs that started for each run."""
    return Counter(job.metadata["run"] for job in control.cluster.started_jobs)


def back_up_under_load(drill: Drill, file: Path) -> set[str]:
    """Back up while another thread submits. Return the runs that it submitted."""
    accepted, is_running = list[Run](), threading.Event()

    def submit() -> None:
        for number in range(LOAD):
            accepted.append(drill.control.submit(f"load-{number}"))
            is_running.set()

    thread = threading.Thread(target=submit)
    thread.start()
    assert is_running.wait(30)
    back_up(drill.url, file)
    thread.join()
    assert len(accepted) == LOAD
    return {run.id for run in accepted}


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["jobs known", "jobs forgotten"])
def test_an_older_backup_loses_and_repeats_nothing(
    url: str, database: Database, tmp_path: Path, is_forgotten: bool
):
    drill = Drill(url, database, tmp_path)
    drill.add_schedule()
    control = drill.control
    done_before, active, waiting = (control.submit(name) for name in ("done", "active", "waiting"))
    with database.write() as session:
        far = "UPDATE runs SET not_before = created_at + 1000 WHERE name = 'waiting'"
        session.execute(text(far))
    assert drill.fire_at(1) == 1
    control.reconcile(2)
    hourly = drill.read_run(1)
    for run in (done_before, hourly):
        drill.finish(run)
    control.reconcile()
    assert control.read_status(done_before) is Status.DONE
    assert control.read_status(waiting) is Status.PLANNED

    file = tmp_path / "backup"
    load = back_up_under_load(drill, file)

    # All this is lost with the database.
    control.end_retry_wait()
    late = control.submit("late")
    assert drill.fire_at(2) == 1
    control.reconcile(2)
    for run in (active, waiting):
        drill.finish(run)
    late_done = control.submit("late-done")
    control.reconcile(2)
    drill.finish(late_done)
    control.reconcile()
    before, firings = drill.list_runs(), drill.list_firings()
    starts = count_starts(control)
    ended = [run.id for run in (done_before, hourly, active, waiting, late_done)]
    assert {before[run] for run in ended} == {Status.DONE}
    assert set(firings) == {1.0, 2.0} and late.id in before and load < set(before)

    def forget_ended_jobs() -> None:
        if is_forgotten:
            for run in ended:
                control.cluster._jobs.pop(f"{run}-a1", None)

    drill.restore(file, forget=forget_ended_jobs)
    assert drill.list_firings().keys() == {1.0}
    drill.fire_at(2)
    drill.control.reconcile(4)
    drill.control.end_retry_wait()
    drill.control.reconcile(4)
    after = drill.list_runs()
    assert set(after) == set(before) == drill.list_requests()
    assert {run: after[run] for run in ended} == dict.fromkeys(ended, Status.DONE)
    assert {after[run] for run in after if run not in ended} == {Status.RUNNING}
    assert count_starts(drill.control) == starts and set(starts.values()) == {1}
    assert control.cluster.stopped_ids == []
    assert drill.list_firings() == firings
    assert drill.fire_at(2.5) == 0 and drill.fire_at(3) == 1
    drill.control.database.close()


def test_a_schedule_fires_on_after_a_rebuild_without_its_firing(
    url: str, database: Database, tmp_path: Path
):
    drill = Drill(url, database, tmp_path)
    drill.add_schedule()
    back_up(url, tmp_path / "backup")
    assert drill.fire_at(1) == 1
    firings = drill.list_firings()
    drill.restore(tmp_path / "backup")
    assert drill.list_firings() == {}
    assert drill.fire_at(2) == 2
    assert drill.list_firings()[1.0] == firings[1.0] and len(drill.list_runs()) == 2
    drill.control.database.close()
