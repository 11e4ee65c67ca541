"""The audit log: its entries are only added, within the transaction of a change."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, text

from orchestrator.registry import projects
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseRefused, DatabaseUnreachable
from orchestrator.registry.tables import AuditRow
from orchestrator.registry.tenancy import audit_log
from orchestrator.registry.tenancy.audit_log import (
    MIN_AUDIT_DAYS,
    SERVICE,
    Actor,
    AuditEntry,
    make_local_actor,
)
from tests.orchestrator.registry.builders import read_rows

ACTOR = Actor("0123456789abcdef", "ci", "192.0.2.7", "request-1")
DAY_S = 86400.0


def record(database: Database, name: str, actor: Actor = ACTOR, **changes: str) -> None:
    values = {"action": "create", "object_kind": "run", "project": "lab", **changes}
    with database.write() as session:
        audit_log.record(session, actor, object=name, after={"name": name}, **values)


def list_entries(database: Database, **filters: object) -> list[AuditEntry]:
    with database.read() as session:
        return audit_log.list_entries(session, **filters)  # type: ignore[arg-type]


def list_objects(database: Database, **filters: object) -> list[str]:
    return [entry.object for entry in list_entries(database, **filters)]


def add_old_entry(database: Database, days: float) -> None:
    with database.write() as session:
        now = session.scalar(text("SELECT MAX(at) FROM audit"))
        values = {"at": now - days * DAY_S, "action": "create", "object_kind": "run", "object": "x"}
        session.execute(insert(AuditRow).values(values))


def test_an_entry_tells_who_changed_what(database: Database):
    record(database, "r1")
    (entry,) = list_entries(database)
    assert (entry.token, entry.label, entry.address, entry.request_id) == (
        *("0123456789abcdef", "ci", "192.0.2.7", "request-1"),
    )
    assert (entry.action, entry.object_kind, entry.object) == ("create", "run", "r1")
    assert (entry.project, entry.before, entry.after) == ("lab", None, {"name": "r1"})


def test_a_change_that_is_rolled_back_leaves_no_entry(database: Database):
    def fail_after_change() -> None:
        with database.write() as session:
            projects.ensure_project(session, "lab")
            audit_log.record(
                session, ACTOR, action="create", object_kind="project", object="lab", project=None
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_change()
    assert read_rows(database, "projects") == [] and list_entries(database) == []


def test_entries_are_listed_newest_first_by_page_and_filter(database: Database):
    for number in range(5):
        record(database, f"r{number}")
    record(database, "nightly", SERVICE, object_kind="schedule", project="other", action="stop")
    assert list_objects(database) == ["nightly", "r4", "r3", "r2", "r1", "r0"]
    first = list_entries(database, limit=2)
    assert list_objects(database, after=first[-1].id, limit=2) == ["r3", "r2"]
    assert list_objects(database, project="other") == ["nightly"]
    assert list_objects(database, action="stop") == ["nightly"]
    assert list_objects(database, object_kind="schedule") == ["nightly"]
    assert list_objects(database, object="r2") == ["r2"]
    assert len(list_objects(database, token=ACTOR.token)) == 5
    newest = list_entries(database)[0]
    assert list_objects(database, since=newest.at)[0] == "nightly"
    assert "nightly" not in list_objects(database, until=newest.at)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET label = 'somebody'",
        "UPDATE audit SET after = NULL WHERE id = 1",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
    ],
)
def test_the_database_refuses_to_change_an_entry_or_to_delete_a_young_one(
    database: Database, statement: str
):
    record(database, "r1")
    before = read_rows(database, "audit")
    with pytest.raises(DatabaseRefused, match="never changed"), database.write() as session:
        session.execute(text(statement))
    assert read_rows(database, "audit") == before


def test_a_table_of_postgresql_is_not_truncated(database: Database):
    record(database, "r1")
    # SQLite has no such statement, and says so as of any that it can't parse.
    refusals = (DatabaseUnreachable, DatabaseRefused)
    with pytest.raises(refusals), database.write() as session:
        session.execute(text("TRUNCATE audit"))
    assert list_objects(database) == ["r1"]


def test_retention_deletes_what_is_older_and_records_how_much(database: Database):
    record(database, "r1")
    for days in (MIN_AUDIT_DAYS + 1, MIN_AUDIT_DAYS + 10, MIN_AUDIT_DAYS - 1):
        add_old_entry(database, days)
    with database.write() as session:
        assert audit_log.apply_retention(session, days=MIN_AUDIT_DAYS) == 2
    newest = list_entries(database)[0]
    assert (newest.action, newest.object_kind, newest.after) == ("expire", "audit", {"deleted": 2})
    assert (newest.token, newest.label) == (None, None)
    assert len(list_entries(database)) == 3
    with database.write() as session:
        assert audit_log.apply_retention(session, days=MIN_AUDIT_DAYS) == 0
    assert len(list_entries(database)) == 3


def test_texts_of_others_are_stored_without_control_characters(database: Database):
    record(database, "a\0b\x1b[2J", Actor(address="1" * 500 + "\x1b"))
    (entry,) = list_entries(database)
    assert entry.object.isprintable() and entry.address == "1" * 63


def test_a_user_of_this_machine_is_named_by_the_system():
    label = make_local_actor().label
    assert label is not None and label.startswith("local:") and len(label) > len("local:")
