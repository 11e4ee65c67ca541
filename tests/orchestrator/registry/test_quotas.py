"""A project never has more runs, schedules, bytes or priority than its quotas allow."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.registry import projects, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import QuotaExceeded
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.usage import measure_usage
from orchestrator.registry.values import ProjectLimits
from tests.orchestrator.registry.builders import add_run, list_runs, make_request, move_run


def set_limits(database: Database, **limits: int | None) -> None:
    with database.write() as session:
        project = projects.ensure_project(session, "default")
        projects.set_limits(session, project, ProjectLimits(**limits))


def add_schedule(database: Database, name: str, **changes: Any) -> None:
    new = NewSchedule(name=name, cron="* * * * *", spec={}, **changes)
    with database.write() as session:
        schedules.add(session, new, next_at=0.0)


def store_adapter(
    database: Database, size: int, version: int = 1, project: str = "default"
) -> None:
    with database.write() as session:
        session.execute(
            text(
                "INSERT INTO adapters (store, name, version, project, run, attempt, kind, "
                "base_digest, size, committed_at, manifest) VALUES ('file:///store', 'chat', "
                ":version, :project, 'r0', 1, 'finetune', 'x', :size, 0, '{}')"
            ),
            {"version": version, "size": size, "project": project},
        )


def read_refusal(database: Database, run_id: str = "refused", **changes: Any) -> dict[str, str]:
    with pytest.raises(QuotaExceeded) as refusal:
        add_run(database, run_id, **changes)
    with database.read() as session:
        assert run_id not in {run.id for run in list_runs(session)}
    return {fault.key: f"{fault.problem}. {fault.remedy}" for fault in refusal.value.faults}


def test_only_runs_that_have_not_ended_count_as_queued(database: Database):
    set_limits(database, max_queued=2)
    first = add_run(database, "r1")
    add_run(database, "r2")
    assert read_refusal(database) == {
        "max_queued": (
            "project default has 2 of its 2 runs that have not ended. Wait until one ends, stop "
            "one with `slora stop`, or ask an administrator for "
            "`slora projects set default --max-queued N`."
        )
    }
    add_run(database, "elsewhere", project="other")
    move_run(database, first, Status.STOPPED, reason=Reason.USER)
    add_run(database, "r3")


def test_a_project_whose_adapters_fill_its_store_adds_no_run(database: Database):
    set_limits(database, max_stored_bytes=1000)
    store_adapter(database, 600)
    add_run(database, "r1")
    store_adapter(database, 400, version=2)
    assert "stores 1,000 of its 1,000 bytes" in read_refusal(database)["max_stored_bytes"]
    set_limits(database, max_stored_bytes=1001)
    add_run(database, "r2")


def test_the_adapters_of_another_project_do_not_count(database: Database):
    set_limits(database, max_stored_bytes=1000)
    add_run(database, "theirs", project="other")
    store_adapter(database, 2000, project="other")
    add_run(database, "r1")


@pytest.mark.parametrize(
    ("limit", "needs", "problem"),
    [
        ("max_workers", {"workers": 3}, "the run needs 3 workers at once"),
        ("max_cpus", {"cpus": 3}, "the run needs 3 CPUs at once"),
        ("max_gpus", {"gpus": 3}, "the run needs 3 GPUs at once"),
        ("max_tokens_a_day", {"tokens": 3}, "the run needs 3 tokens in 24 hours"),
    ],
)
def test_a_run_that_can_never_start_is_refused(
    database: Database, limit: str, needs: dict[str, int], problem: str
):
    set_limits(database, **{limit: 2})
    add_run(database, "r1", **dict.fromkeys(needs, 2))
    refusal = read_refusal(database, **needs)
    assert list(refusal) == [limit]
    assert refusal[limit].startswith(f"{problem}; the limit of project default is 2.")
    assert f"--{limit.replace('_', '-')} N" in refusal[limit]


def test_a_priority_above_the_limit_is_refused_with_the_bound(database: Database):
    set_limits(database, max_priority=5)
    add_run(database, "r1", priority=5)
    refusal = read_refusal(database, priority=6)
    assert refusal == {
        "priority": "6 is above 5, the highest of project default. Use 5 or less.",
    }
    with pytest.raises(QuotaExceeded, match="6 is above 5"):
        add_schedule(database, "nightly", priority=6)


def test_all_reasons_are_reported_together(database: Database):
    set_limits(database, max_queued=0, max_cpus=1, max_priority=0)
    assert set(read_refusal(database, cpus=2, priority=1)) == {"max_queued", "max_cpus", "priority"}


def test_paused_schedules_count(database: Database):
    set_limits(database, max_schedules=1)
    add_schedule(database, "nightly")
    with database.write() as session:
        schedule = schedules.get(session, "default", "nightly")
        schedules.update_schedule(session, schedule, paused=True)
    with pytest.raises(QuotaExceeded, match="has 1 of its 1 schedules"):
        add_schedule(database, "hourly")
    add_schedule(database, "hourly", project="other")


@pytest.mark.parametrize("kind", ["run", "schedule"])
def test_of_many_at_once_no_more_are_added_than_allowed(database: Database, kind: str):
    set_limits(database, max_queued=3, max_schedules=3)
    start, refused = threading.Barrier(8), []

    def add(number: int) -> None:
        start.wait()
        try:
            add_run(database, f"r{number}") if kind == "run" else add_schedule(
                database, f"s{number}"
            )
        except QuotaExceeded as quota:
            refused.append(quota)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        listed = list_runs(session) if kind == "run" else schedules.list_page(session)
    assert len(listed) == 3 and len(refused) == 5


def test_a_submission_without_quotas_locks_nothing(database: Database):
    if database.is_local:
        pytest.skip("SQLite has one writer")
    add_run(database, "r1")
    with database.write() as slow:
        runs.add(slow, "r2", make_request())
        with database.write() as session:
            session.execute(text("SET LOCAL lock_timeout = 500"))
            runs.add(session, "r3", make_request())


def test_the_usage_of_a_project_sums_its_active_runs(database: Database):
    set_limits(database, max_stored_bytes=10)
    running = add_run(database, "r1", workers=2, cpus=8, gpus=2, tokens=100)
    move_run(database, running, Status.SUBMITTED)
    add_run(database, "planned", workers=9, cpus=9, gpus=9, tokens=9)
    store_adapter(database, 7)
    with database.read() as session:
        usage = measure_usage(session)["default"]
        assert usage == measure_usage(session, project="default")["default"]
        assert measure_usage(session, project="other") == {}
    assert (usage.runs, usage.workers, usage.cpus, usage.gpus) == (1, 2, 8, 2)
    assert (usage.tokens, usage.stored_bytes) == (100, 7)
