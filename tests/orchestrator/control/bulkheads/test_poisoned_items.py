"""A poisoned run, job or schedule ends alone: its loop goes on, and the others are handled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import DigestMismatch
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Job, JobState, JobStatus
from orchestrator.control.bulkheads.item_guard import MAX_FAILURES, MAX_WAIT_S
from orchestrator.control.dispatcher import FITS, PlacementResult
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from tests.jobs.store.builders import make_adapter_folder
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import RUNNING, SUCCEEDED, ControlHarness
from tests.orchestrator.control.test_scheduler import SchedulerHarness

OURS = {"slora_service": "here"}


def execute(database: Database, statement: str, **values: Any) -> None:
    with database.write() as session:
        session.execute(text(statement), values)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, OverflowError, KeyError])
def test_a_planned_run_at_which_the_check_fails_ends_and_the_next_starts(
    control: ControlHarness, error: type[Exception]
):
    pill, good = control.submit("pill", priority=9), control.submit("good")

    def check(run: Run) -> PlacementResult:
        if run.id == pill.id:
            raise error("secret")
        return FITS

    control.fits = check
    control.reconcile()
    ended = control.read(pill)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.INTERNAL)
    assert error.__name__ in ended.detail and "secret" not in ended.detail
    assert control.read_status(good) is Status.SUBMITTED
    assert control.observer.item_failures.labels("run")._value.get() == 1


def test_a_planned_run_with_a_poisoned_stop_request_fails(control: ControlHarness):
    pill, good = control.submit("pill"), control.submit("good")
    execute(control.database, "UPDATE runs SET stop = 'poison' WHERE id = :id", id=pill.id)
    control.reconcile()
    assert control.read(pill).reason is Reason.INTERNAL
    assert control.read_status(good) is Status.SUBMITTED


def test_a_row_with_text_for_a_number_fails(control: ControlHarness):
    if not control.database.is_local:
        pytest.skip("PostgreSQL stores no text in a column of numbers")
    pill, good = control.submit("pill"), control.submit("good")
    execute(control.database, "UPDATE runs SET priority = 'high' WHERE id = :id", id=pill.id)
    control.reconcile(2)
    assert control.read(pill).reason is Reason.INTERNAL
    assert control.read_status(good) in (Status.SUBMITTED, Status.RUNNING)


def test_the_tokens_of_many_runs_do_not_overflow_their_sum(control: ControlHarness):
    for _ in range(3):
        control.submit()
    execute(control.database, "UPDATE runs SET tokens = 9000000000000000000")
    control.reconcile()
    late = control.submit("late")
    control.reconcile()
    assert control.read_status(late) is Status.SUBMITTED


def test_a_run_that_the_database_refuses_to_move_leaves_the_others_their_moves(
    control: ControlHarness,
):
    pill, good = control.submit("pill", priority=9), control.submit("good")
    columns = "run, origin, position, at, kind, attempt, body"
    execute(
        control.database,
        f"INSERT INTO events ({columns}) VALUES (:id, 'registry', 2, 0, 'taken', 0, '{{}}')",
        id=pill.id,
    )
    control.reconcile()
    assert control.read_status(pill) is Status.PLANNED, "not even its end can be written"
    assert control.read_status(good) is Status.SUBMITTED
    execute(control.database, "DELETE FROM events WHERE kind = 'taken'")
    control.guard_time += MAX_WAIT_S
    control.reconcile()
    assert control.read_status(pill) is Status.SUBMITTED


def test_an_active_run_survives_our_own_error_and_ends_after_many(control: ControlHarness):
    pill, good = control.submit("pill"), control.submit("good")
    control.reconcile()
    poison: Any = "poison"
    control.cluster.play(f"{pill.id}-a1", JobStatus(JobState.FAILED, exit_code=poison))
    for _ in range(MAX_FAILURES - 1):
        control.reconcile()
        control.guard_time += MAX_WAIT_S
    assert control.read_status(pill) is Status.SUBMITTED
    assert control.read_status(good) is Status.RUNNING
    control.reconcile()
    ended = control.read(pill)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.INTERNAL)
    assert "TypeError" in ended.detail


def test_an_active_run_whose_error_passes_continues(control: ControlHarness):
    run = control.submit()
    control.reconcile()
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)

    def fail(url: str) -> ObjectStore:
        raise MemoryError

    control.open = fail
    control.reconcile()
    control.open = open_store
    control.reconcile()
    assert control.read_status(run) is Status.SUBMITTED, "it is tried again after a wait only"
    control.guard_time += MAX_WAIT_S
    control.reconcile()
    assert control.read(run).reason is Reason.UNPUBLISHED


def test_a_run_whose_submission_fails_leaves_the_others_theirs(control: ControlHarness):
    pill, good = control.submit("pill", priority=9), control.submit("good")

    def open_or_fail(url: str) -> ObjectStore:
        with control.database.read() as session:
            begun = session.scalar(text("SELECT count(*) FROM attempts"))
        if begun and not control.cluster.submitted_ids and not calls:
            calls.append(url)
            raise OverflowError
        return open_store(url)

    calls: list[str] = []
    control.open = open_or_fail
    control.reconcile()
    assert control.list_submissions(good) == [f"{good.id}-a1"]
    assert control.list_submissions(pill) == []
    control.guard_time += MAX_WAIT_S
    control.reconcile()
    assert control.list_submissions(pill) == [f"{pill.id}-a1"]


def test_a_job_at_which_we_fail_is_neither_stopped_nor_in_the_way(control: ControlHarness):
    for name in ("pill-a1", "stray-a1"):
        control.cluster.add_foreign_job(Job(name, "jobs.finetune", (), OURS), RUNNING)

    def open_or_fail(url: str) -> ObjectStore:
        calls.append(url)
        if len(calls) == 1:
            raise RecursionError
        return open_store(url)

    calls: list[str] = []
    control.open = open_or_fail
    control.reconcile()
    assert control.cluster.stopped_ids == ["stray-a1"]


SPEC = json.dumps(make_spec())
BIG = "9" * 5000
POISONED_SCHEDULES = {
    "steps": ("spec", SPEC.replace('"steps": 10', f'"steps": {10**18}')),
    "batch": ("spec", SPEC.replace('"batch_size": 4', f'"batch_size": {10**6}')
              .replace('"steps": 10', f'"steps": {10**9}')),
    "length": ("spec", SPEC.replace('"max_length": 64', f'"max_length": {10**320}')
               .replace('"steps": 10', '"epochs": 3')),
    "digits": ("spec", SPEC.replace('"steps": 10', f'"steps": {BIG}')),
    "cpus": ("spec", SPEC.replace('"store"', f'"cluster": {{"cpus_per_worker": {10**4299}}}, '
                                  '"store"')),
    "nested": ("spec", '{"name": ' + "[" * 3000 + "]" * 3000 + "}"),
    "list": ("spec", "[1, 2]"),
    "cron": ("cron", "not a cron expression"),
    "zone": ("time_zone", "Nowhere/None"),
    "kind": ("kind", "poison"),
    "missed": ("jitter_s", "1e308"),
}  # fmt: skip


@pytest.mark.parametrize("poison", POISONED_SCHEDULES)
def test_a_poisoned_schedule_is_refused_once_and_the_others_fire(
    database: Database, tmp_path: Any, poison: str
):
    harness = SchedulerHarness(database, f"file://{tmp_path}/store")
    harness.add("poisoned"), harness.add("good")
    column, value = POISONED_SCHEDULES[poison]
    assignment = f"CAST(:value AS {'json' if column == 'spec' else 'double precision'})"
    if database.is_local or column not in ("spec", "jitter_s"):
        assignment = ":value"
    execute(
        database,
        f"UPDATE schedules SET {column} = {assignment} WHERE name = 'poisoned'",
        value=value,
    )
    for minutes in (60, 61, 62):
        harness.fire_at(minutes / 60)
    assert harness.list_outcomes("good") == ["run"]
    assert harness.list_outcomes("poisoned") == ["refused"]
    assert [run.project for run in harness.list_runs()] == ["default"]
    harness.fire_at(2)
    assert harness.list_outcomes("good") == ["run", "skipped"]


class CorruptRun:
    """A store in which the journal of one run does not match its digest."""

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store, self._run = store, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, *span: int) -> bytes:
        if key.startswith(f"runs/{self._run}/"):
            raise DigestMismatch(key, "a" * 64, "b" * 64)
        return self._store.read(key, *span)


@pytest.mark.parametrize("has_ended", [True, False], ids=["ended", "to submit"])
def test_a_run_whose_files_are_corrupt_delays_no_other_run_of_its_store(
    control: ControlHarness, tmp_path: Path, has_ended: bool
):
    pill, good = control.submit("pill", priority=9), control.submit("good")
    store = CorruptRun(open_store(control.store), pill.id)
    if has_ended:
        control.reconcile()
        control.commit(good, make_adapter_folder(tmp_path / "adapter"))
        for run in (pill, good):
            control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.open = lambda url: store  # type: ignore[assignment,return-value]
    control.reconcile()
    assert control.read_status(good) is (Status.DONE if has_ended else Status.SUBMITTED)
    assert control.list_submissions(good) == [f"{good.id}-a1"]
    assert control.read_status(pill) is Status.SUBMITTED
    assert control.observer.item_failures.labels("run")._value.get() == 1
