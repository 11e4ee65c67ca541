"""The table of the lifecycle, which no move can bypass."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InputError
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import ForbiddenMove
from orchestrator.registry.lifecycle import FINAL, MOVES, REASONS, Reason, Status, check_move
from orchestrator.registry.migrate import upgrade
from tests.orchestrator.registry.builders import add_run

REASON_OF = {status: sorted(reasons)[0] for status, reasons in REASONS.items()}


def test_every_status_is_in_the_table_and_can_end():
    assert set(MOVES) == set(Status)
    reachable = {status: {status} for status in Status}
    for _ in Status:
        for status in Status:
            for following in set(reachable[status]):
                reachable[status] |= MOVES[following]
    assert all(statuses & FINAL for statuses in reachable.values())
    assert reachable[Status.PLANNED] == set(Status)


def test_final_statuses_have_no_moves():
    assert {Status.DONE, Status.FAILED, Status.STOPPED} == FINAL


def test_a_move_is_allowed_exactly_if_it_is_in_the_table():
    for status, target in product(Status, Status):
        if target in MOVES[status]:
            check_move(status, target, REASON_OF.get(target))
        else:
            with pytest.raises(ForbiddenMove, match=f"{status.value} cannot become {target.value}"):
                check_move(status, target, REASON_OF.get(target))


@pytest.mark.parametrize(
    ("target", "reason", "says"),
    [
        (Status.FAILED, None, "none is not a reason to be failed"),
        (Status.FAILED, Reason.USER, "user is not a reason to be failed"),
        (Status.PUBLISHING, Reason.CRASHED, "Use none"),
    ],
    ids=["an end without", "another's", "where none belongs"],
)
def test_a_status_requires_one_of_its_reasons_or_none(
    target: Status, reason: Reason | None, says: str
):
    with pytest.raises(InputError, match=says):
        check_move(Status.RUNNING, target, reason)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{Path(tmp_path_factory.mktemp('moves')) / 'registry.db'}"
    upgrade(url)
    database = Database(url)
    yield database
    database.close()


@settings(max_examples=60, deadline=None)
@given(tries=st.lists(st.sampled_from(sorted(Status)), max_size=12))
def test_any_attempted_moves_follow_the_table(sqlite, tries):
    run = add_run(sqlite, f"r-{secrets.token_hex(8)}")
    expected = [Status.PLANNED]
    for target in tries:
        try:
            with sqlite.write() as session:
                run = runs.move(session, run, target, reason=REASON_OF.get(target))
        except ForbiddenMove:
            assert target not in MOVES[expected[-1]]
        else:
            expected.append(target)
    with sqlite.read() as session:
        read, events = runs.get(session, run.id), runs.list_events(session, run.id)
        attempts = runs.list_attempts(session, run.id)
    assert read == run
    assert [event.kind for event in events] == [status.value for status in expected]
    assert [event.position for event in events] == list(range(1, run.revision + 1))
    assert run.attempt == len(attempts) == expected.count(Status.SUBMITTED)
