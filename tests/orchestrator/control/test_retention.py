"""Ended runs, firings, tokens and keys are deleted when they are old enough; adapters never."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import StoreUnreachable
from jobs.store.adapters.listing import scan_adapters
from jobs.store.adapters.operations import commit
from jobs.store.base import ObjectStore
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from orchestrator.control.resolve import resolve_run
from orchestrator.control.retention.retention import Retention, RetentionTally
from orchestrator.control.retention.retention_config import RetentionConfig
from orchestrator.control.retention.run_removal import check_removable, remove_run
from orchestrator.control.retention.unnamed_runs import (
    delete_unnamed_run,
    find_unnamed_runs,
    list_store_urls,
)
from orchestrator.registry import projects, schedules, tokens
from orchestrator.registry.errors import RunInUse
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.run_request import write_request
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.tenancy.audit_log import Actor, AuditEntry, list_entries
from orchestrator.registry.values import ProjectLimits, Run
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness, SubmitRequest
from tests.orchestrator.registry.builders import list_runs

DAY_S = 86400.0
ELSEWHERE = "0123456789abcdef" * 2


def get_store(control: ControlHarness) -> DirectoryStore:
    store = open_store(control.store)
    assert isinstance(store, DirectoryStore)
    return store


def end_run(control: ControlHarness, folder: Path | None = None, **submission: Any) -> Run:
    """Run one to its end, with an adapter if there is a folder for it."""
    run = control.submit(**submission)
    control.reconcile(2)
    journal = RunStore(open_store(run.store), run.id)
    journal.events.append({"event": "started", "steps": 1})
    for name in ("plan.json", "ledger.json", "heartbeat.json", "checkpoints/10/state.json"):
        journal.write_text(name, "{}")
    if folder is not None:
        control.commit(run, folder)
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    return control.read(run)


def list_files(control: ControlHarness, run: Run) -> list[str]:
    start = f"runs/{run.id}/"
    return [key.removeprefix(start) for key in get_store(control).list(start)]


def count(control: ControlHarness, table: str) -> int:
    with control.database.read() as session:
        return session.scalar(text(f"SELECT count(*) FROM {table}")) or 0


def age_rows(control: ControlHarness, table: str, column: str, days: float) -> None:
    with control.database.write() as session:
        session.execute(text(f"UPDATE {table} SET {column} = {column} - {days * DAY_S}"))


def age_files(control: ControlHarness, days: float) -> None:
    at = time.time() - days * DAY_S
    for path in get_store(control).root.rglob("*"):
        os.utime(path, (at, at))


def remove(control: ControlHarness, run: Run) -> Any:
    return remove_run(control.database, run, instance=control.instance, store_opener=open_store)


def make_retention(
    control: ControlHarness, *, runs_per_batch: int = 20, **days: int | None
) -> Retention:
    return Retention(
        control.database,
        RetentionConfig(**days),  # type: ignore[arg-type]
        instance=control.instance,
        store_opener=lambda url: control.open(url),
        runs_per_batch=runs_per_batch,
    )


def test_a_deleted_run_has_neither_rows_nor_files(control: ControlHarness):
    run = end_run(control)
    assert run.status is Status.FAILED and len(list_files(control, run)) == 7
    removed = remove(control, run)
    assert (removed.files, removed.retained_files) == (7, 0)
    assert list_files(control, run) == []
    assert [count(control, table) for table in ("runs", "attempts", "events")] == [0, 0, 0]


def test_a_committed_adapter_stays_with_what_it_needs(control: ControlHarness, tmp_path: Path):
    run = end_run(control, tmp_path / "adapter")
    assert run.status is Status.DONE
    removed = remove(control, run)
    assert (removed.retained_files, removed.reason) == (3, "its adapter needs them")
    assert list_files(control, run) == ["ledger.json", "plan.json", "spec.yaml"]
    assert [manifest.run for manifest in scan_adapters(get_store(control))[0]] == [run.id]
    assert (count(control, "runs"), count(control, "adapters")) == (0, 1)


def test_an_adapter_that_the_registry_does_not_know_is_found(
    control: ControlHarness, tmp_path: Path
):
    run = end_run(control)
    control.commit(run, tmp_path / "late")
    assert remove(control, run).retained_files == 3


def test_a_search_is_deleted_with_its_trials_and_nothing_beside(control: ControlHarness):
    search = end_run(control)
    store = get_store(control)
    trial, other, submitted = (f"{search.id}-{name}" for name in ("t001", "tuned", "t002"))
    for folder in (trial, other, submitted):
        store.put(f"runs/{folder}/spec.yaml", b"name: chat")
    request = resolve_run(
        SubmitRequest(spec=make_spec(control.store)), [control.store], ["default"]
    )
    write_request(store, submitted, request)
    with control.database.write() as session:
        session.execute(text("UPDATE runs SET kind = 'search'"))
    remove(control, control.read(search))
    folders = {key.split("/")[1] for key in store.list("runs/")}
    assert folders == {other, submitted}


@pytest.mark.parametrize("steps", [0, 2], ids=["planned", "running"])
def test_a_run_that_has_not_ended_is_not_deleted(control: ControlHarness, steps: int):
    run = control.submit()
    control.reconcile(steps)
    with pytest.raises(RunInUse, match="slora stop"):
        check_removable(control.database, control.read(run))


def test_a_run_whose_tokens_count_today_stays(control: ControlHarness):
    run = end_run(control)
    check_removable(control.database, run)
    with control.database.write() as session:
        limits = ProjectLimits(max_tokens_a_day=10**9)
        projects.set_limits(session, projects.get(session, "default"), limits)
    with pytest.raises(RunInUse, match="24 hours"):
        check_removable(control.database, run)
    age_rows(control, "attempts", "created_at", 2)
    check_removable(control.database, run)


def test_the_files_of_another_service_stay(control: ControlHarness):
    run = end_run(control)
    removed = remove_run(control.database, run, instance=ELSEWHERE, store_opener=open_store)
    assert (removed.files, removed.retained_files) == (0, 7)
    assert count(control, "runs") == 0 and len(list_files(control, run)) == 7


def test_a_deletion_that_the_store_interrupts_is_repeated(control: ControlHarness):
    run = end_run(control)

    def fail(url: str) -> ObjectStore:
        raise StoreUnreachable("the store does not answer")

    with pytest.raises(StoreUnreachable):
        remove_run(control.database, run, instance=control.instance, store_opener=fail)
    assert count(control, "runs") == 1
    get_store(control).delete(f"runs/{run.id}/plan.json")
    assert remove(control, run).files == 6 and count(control, "runs") == 0


def test_old_ended_runs_are_deleted_and_others_stay(control: ControlHarness):
    old, active = end_run(control), control.submit("active")
    age_rows(control, "runs", "updated_at", 31)
    young = end_run(control, name="young")
    assert make_retention(control).apply_batch().runs == 0  # kept for ever by default
    retention = make_retention(control, runs_days=30)
    assert [run.id for run in retention.list_expired_runs(10)] == [old.id]
    assert retention.apply_batch().runs == 1
    assert control.read(active) and control.read(young)
    assert list_files(control, old) == [] and count(control, "runs") == 2
    assert retention.apply_batch() == RetentionTally()


def list_deletions(control: ControlHarness) -> list[AuditEntry]:
    with control.database.read() as session:
        return list_entries(session, action="delete")


def test_each_deleted_run_is_in_the_audit_log_once(control: ControlHarness):
    old = end_run(control)
    age_rows(control, "runs", "updated_at", 31)
    make_retention(control, runs_days=30).apply_batch()
    remove(control, old)  # its row has gone already
    (entry,) = list_deletions(control)
    assert (entry.object_kind, entry.object, entry.project) == ("run", old.id, old.project)
    assert (entry.token, entry.label) == (None, None), "the service did it"
    assert entry.before == {"status": "failed", "store": control.store, "by": None}


def test_a_batch_is_bounded_and_a_store_that_fails_delays_no_other(control: ControlHarness):
    runs = [end_run(control, name=name) for name in ("a", "b", "c")]
    age_rows(control, "runs", "updated_at", 31)
    with control.database.write() as session:
        session.execute(text("UPDATE runs SET store = 's3://gone/x' WHERE name = 'a'"))

    def open_or_fail(url: str) -> ObjectStore:
        if url.startswith("s3"):
            raise StoreUnreachable("the store does not answer")
        return open_store(url)

    control.open = open_or_fail
    retention = make_retention(control, runs_per_batch=1, runs_days=30)
    assert [retention.apply_batch().runs for _ in range(3)] == [1, 1, 0]
    assert control.read(runs[0]) and count(control, "runs") == 1


def test_what_a_project_links_to_stays_and_delays_no_other_project(
    control: ControlHarness, tmp_path: Path
):
    folder = get_store(control).root / "projects"
    hostile, victim = (end_run(control, project=project, name="a") for project in ("lab", "other"))
    single = end_run(control, name="b")
    files = sorted((folder / "other/runs" / victim.id).rglob("*"))
    assert len(files) > 5
    own = folder / "lab/runs" / hostile.id
    own.rename(tmp_path / "moved")
    own.symlink_to(folder / "other/runs" / victim.id)
    with control.database.write() as session:
        # The hostile one is the oldest, and the victim's is to be kept.
        for name, days in (("lab", 99), ("default", 31)):
            query = "UPDATE runs SET updated_at = updated_at - :s WHERE project = :project"
            session.execute(text(query), {"s": days * DAY_S, "project": name})
    assert make_retention(control, runs_days=30).apply_batch().runs == 1
    assert sorted((folder / "other/runs" / victim.id).rglob("*")) == files
    with control.database.read() as session:
        assert {run.id for run in list_runs(session)} == {hostile.id, victim.id}
    assert list_files(control, single) == []


def test_old_firings_are_deleted_unless_their_run_is_unfinished(control: ControlHarness):
    ended, waiting = end_run(control), control.submit("waiting")
    spec = make_spec(control.store)
    with control.database.write() as session:
        schedule = schedules.add(
            session, NewSchedule(name="hourly", cron="0 * * * *", spec=spec), next_at=1.0
        )
        for due_at, run in ((1.0, ended.id), (2.0, waiting.id), (3.0, None)):
            schedule = schedules.fire(
                session, schedule, due_at=due_at, next_at=due_at + 1, outcome="run", run=run
            )
    assert make_retention(control).apply_batch().firings == 0
    age_rows(control, "firings", "fired_at", 91)
    retention = make_retention(control)
    assert retention.count_expired().firings == 2
    assert retention.apply_batch().firings == 2
    with control.database.read() as session:
        assert [firing.due_at for firing in schedules.list_firings(session, schedule)] == [2.0]


def test_old_tokens_are_deleted_except_the_newest_administrators(control: ControlHarness):
    with control.database.write() as session:
        valid, _ = tokens.issue(session, "valid", "viewer")
        revoked, _ = tokens.issue(session, "revoked", "submitter")
        tokens.issue(session, "expired", "viewer", seconds=1)
        old_admin, _ = tokens.issue(session, "old-admin", "admin")
        session.execute(text("UPDATE tokens SET created_at = created_at - 1"))
        new_admin, _ = tokens.issue(session, "new-admin", "admin")
        for token in (revoked, old_admin, new_admin):
            tokens.revoke(session, token.id)
    assert make_retention(control).apply_batch().tokens == 0
    for column in ("created_at", "expires_at", "revoked_at"):
        age_rows(control, "tokens", column, 31)
    assert make_retention(control, tokens_days=None).apply_batch().tokens == 0
    assert make_retention(control).apply_batch().tokens == 3
    with control.database.read() as session:
        left = {token.label for token in tokens.list_tokens(session)}
    assert left == {valid.label, "new-admin"}


def test_old_keys_are_deleted_after_a_week(control: ControlHarness):
    control.intake.accept(SubmitRequest(spec=make_spec(control.store)), key="k")
    assert make_retention(control).apply_batch().keys == 0
    age_rows(control, "requests", "created_at", 8)
    assert make_retention(control).apply_batch().keys == 1
    assert count(control, "requests") == 0


def write_unnamed(control: ControlHarness, run_id: str, instance: str | None) -> None:
    """Write the request of a submission that died before its row."""
    submission = SubmitRequest(spec=make_spec(control.store))
    request = resolve_run(submission, [control.store], ["default"])
    request = request.model_copy(update={"instance": instance})
    write_request(get_store(control), run_id, request)


def find_unnamed(control: ControlHarness) -> list[str]:
    unnamed = find_unnamed_runs(control.database, get_store(control), instance=control.instance)
    return [item.run for item in unnamed]


def test_only_old_files_of_this_registrys_requests_without_a_row_and_adapter_are_swept(
    control: ControlHarness, tmp_path: Path
):
    store = get_store(control)
    control.submit()
    write_unnamed(control, "unnamed-1", control.instance)
    write_unnamed(control, "foreign-1", ELSEWHERE)
    write_unnamed(control, "older-version-1", None)
    write_unnamed(control, "committed-1", control.instance)
    draft = make_draft(name="chat", run="committed-1")
    commit(store, make_adapter_folder(tmp_path / "adapter"), draft)
    store.put("runs/local-1/spec.yaml", b"name: chat")
    store.put("runs/broken-1/request.json", b"{")
    assert find_unnamed(control) == []
    age_files(control, 8)
    assert find_unnamed(control) == ["unnamed-1"]
    store.put("runs/unnamed-1/heartbeat.json", b"{}")
    assert find_unnamed(control) == []  # something still writes to it
    age_files(control, 8)
    before = set(store.list(""))
    (unnamed,) = find_unnamed_runs(control.database, store, instance=control.instance)
    actor = Actor(label="local:ops")
    assert delete_unnamed_run(control.database, unnamed, store_opener=open_store, actor=actor)
    (entry,) = list_deletions(control)
    assert (entry.object, entry.label, entry.after) == ("unnamed-1", "local:ops", {"files": 2})
    swept = before - set(store.list(""))
    assert swept == {"runs/unnamed-1/request.json", "runs/unnamed-1/heartbeat.json"}


def test_nothing_is_swept_while_an_adapter_cannot_be_read(control: ControlHarness):
    write_unnamed(control, "unnamed-1", control.instance)
    get_store(control).put("adapters/chat/v1/manifest.json", b"{")
    age_files(control, 8)
    assert find_unnamed(control) == []


def test_a_run_that_gets_its_row_meanwhile_is_not_swept(control: ControlHarness):
    write_unnamed(control, "unnamed-1", control.instance)
    age_files(control, 8)
    (unnamed,) = find_unnamed_runs(control.database, get_store(control), instance=control.instance)
    rebuild(control.database, get_store(control))
    assert not delete_unnamed_run(control.database, unnamed, store_opener=open_store)
    assert get_store(control).head("runs/unnamed-1/request.json") is not None


def test_the_folders_of_projects_are_swept_too(control: ControlHarness):
    with control.database.write() as session:
        projects.ensure_project(session, "default")
        projects.ensure_project(session, "lab")
    assert list_store_urls(control.database, ["s3://b/one", "s3://b/two"]) == [
        "s3://b/one",
        "s3://b/two",
        "s3://b/one/projects/lab",
        "s3://b/two/projects/lab",
    ]
