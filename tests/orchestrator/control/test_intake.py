"""Whoever is answered has a run, with its paper in the store; who was not may ask again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import InputError, StoreUnreachable
from jobs.store.open import open_store
from orchestrator.control.intake import SubmitRequest
from orchestrator.registry import runs
from orchestrator.registry.errors import DatabaseUnreachable
from orchestrator.registry.group_commit import GroupCommit
from orchestrator.registry.rebuild.rebuild import rebuild
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import ControlHarness


def kept(control: ControlHarness) -> list[str]:
    with control.database.read() as session:
        return sorted(run.id for run in runs.list_page(session, limit=1000))


def papers(control: ControlHarness) -> list[str]:
    return sorted(key.split("/")[1] for key in open_store(control.store).list("runs/"))


def test_a_run_is_there_with_its_paper_when_it_is_answered(control: ControlHarness):
    run = control.submit(priority=3)
    assert kept(control) == papers(control) == [run.id]
    assert (run.priority, run.tokens, run.workers) == (3, 10 * 4 * 64, 1)


def test_the_same_key_is_the_same_run(control: ControlHarness):
    asked = SubmitRequest(spec=make_spec(control.store))
    first, new = control.intake.accept(asked, key="k1")
    again, newer = control.intake.accept(asked, key="k1")
    assert (again.id, new, newer) == (first.id, True, False)
    assert kept(control) == papers(control) == [first.id]


def test_a_key_that_was_used_for_something_else_is_refused(control: ControlHarness):
    control.intake.accept(SubmitRequest(spec=make_spec(control.store)), key="k1")
    with pytest.raises(InputError, match="used for another submission"):
        control.intake.accept(SubmitRequest(spec=make_spec(control.store), priority=1), key="k1")
    assert len(kept(control)) == len(papers(control)) == 1


def test_many_who_ask_at_once_under_one_key_get_one_run(control: ControlHarness):
    start = threading.Barrier(8)

    def ask(number: int) -> str:
        start.wait()
        return control.intake.accept(SubmitRequest(spec=make_spec(control.store)), key="k")[0].id

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(8)))
    assert len(found) == 1 and kept(control) == papers(control) == sorted(found)


def test_many_who_ask_at_once_get_a_run_each(control: ControlHarness):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: control.submit().id, range(40)))
    assert len(set(found)) == 40 and kept(control) == papers(control) == sorted(found)


def test_a_store_that_is_away_accepts_nothing(control: ControlHarness):
    def away(url: str) -> Any:
        raise StoreUnreachable("the store is away")

    control.open = away
    with pytest.raises(StoreUnreachable):
        control.submit()
    assert kept(control) == []


def test_a_database_that_is_away_accepts_nothing_and_leaves_no_paper(control: ControlHarness):
    class Broken:
        place = "broken"

        def write(self) -> Any:
            raise DatabaseUnreachable("broken", "it is away")

    control.use_group_commit(GroupCommit(Broken()))  # type: ignore[arg-type]
    with pytest.raises(DatabaseUnreachable):
        control.submit()
    assert papers(control) == [] and kept(control) == []


def test_a_commit_whose_answer_is_lost_is_found_to_have_accepted(control: ControlHarness):
    class Mute(GroupCommit):
        def write(self, work: Any) -> Any:
            super().write(work)
            raise DatabaseUnreachable("mute", "the connection broke")

    control.use_group_commit(Mute(control.database))
    run = control.submit()
    assert kept(control) == papers(control) == [run.id]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"cluster": "nowhere"}, id="cluster"),
        pytest.param({"spec": {"name": "chat"}}, id="spec"),
        pytest.param({"spec": make_spec("file:///elsewhere")}, id="store"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(
    control: ControlHarness, wrong: dict[str, Any]
):
    with pytest.raises(InputError):
        control.intake.accept(SubmitRequest(**{"spec": make_spec(control.store), **wrong}))
    assert kept(control) == papers(control) == []


def test_what_was_accepted_comes_back_with_a_registry_that_was_lost(control: ControlHarness):
    run = control.submit(project="team", priority=4)
    with control.database.write() as session:
        for table in ("events", "attempts", "runs"):
            session.execute(text(f"DELETE FROM {table}"))
    rebuild(control.database, open_store(control.store), project="default")
    there = control.read(run)
    assert (there.project, there.priority, there.status) == ("team", 4, run.status)
