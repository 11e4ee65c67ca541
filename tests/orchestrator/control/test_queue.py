"""Who is served next, and who waits and why."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.control.queue import ProjectUsage, QueueDecision, UsageTracker, plan_queue
from orchestrator.registry.values import Project, Run
from tests.orchestrator.control.builders import make_run

ROOM = 100


def make_waiting(run_id: str, project: str = "default", **changes: int) -> Run:
    return make_run(id=run_id, project=project, **changes)


def make_project(name: str, **limits: int | None) -> Project:
    none = {"max_runs": None, "max_workers": None, "max_tokens_a_day": None}
    return Project(name=name, created_at=0.0, revision=1, **{**none, **limits})


def plan(
    *runs: Run,
    usage: Mapping[str, ProjectUsage] | None = None,
    limits: Project | None = None,
    room: int = ROOM,
    held: Mapping[str, str] | None = None,
) -> list[QueueDecision]:
    projects = {limits.name: limits} if limits else {}
    return list(plan_queue(runs, UsageTracker(dict(usage or {})), projects, room, held or {}))


def list_served(found: list[QueueDecision]) -> list[str]:
    return [turn.run.id for turn in found if not turn.wait_reason and not turn.rejection]


def test_the_most_urgent_is_first_and_the_oldest_among_those():
    old, new = make_waiting("old", created_at=1), make_waiting("new", created_at=2)
    urgent = make_waiting("urgent", created_at=3, priority=5)
    assert list_served(plan(new, old, urgent)) == ["urgent", "old", "new"]


def test_a_project_that_uses_less_is_served_before_one_that_asked_first():
    mine = [make_waiting(f"mine{i}", "mine", created_at=i) for i in range(3)]
    yours = [make_waiting(f"yours{i}", "yours", created_at=10 + i) for i in range(2)]
    order = list_served(plan(*mine, *yours))
    assert order == ["mine0", "yours0", "mine1", "yours1", "mine2"]
    busy = list_served(plan(*mine, *yours, usage={"mine": ProjectUsage(runs=2, workers=2)}))
    assert busy[:2] == ["yours0", "yours1"]


def test_what_has_no_room_waits_and_is_told_so():
    found = plan(make_waiting("a", created_at=1), make_waiting("b", created_at=2), room=1)
    assert list_served(found) == ["a"]
    assert found[1].wait_reason == "cluster default is at its limit of active runs (max_runs)"


def test_a_project_at_its_limit_waits_and_others_pass_it():
    limits = make_project("mine", max_runs=1)
    found = plan(
        make_waiting("a", "mine", created_at=1),
        make_waiting("b", "mine", created_at=2),
        make_waiting("c", "yours", created_at=3),
        limits=limits,
    )
    assert list_served(found) == ["a", "c"]
    assert [turn.wait_reason for turn in found if turn.run.id == "b"] == [
        "project mine uses 1 of its 1 runs at once"
    ]


def test_workers_and_tokens_are_counted_as_turns_are_given():
    limits = make_project("default", max_workers=3, max_tokens_a_day=1000)
    found = plan(
        make_waiting("a", workers=2, tokens=600, created_at=1),
        make_waiting("b", workers=2, tokens=100, created_at=2),
        make_waiting("c", workers=1, tokens=500, created_at=3),
        make_waiting("d", workers=1, tokens=100, created_at=4),
        limits=limits,
    )
    assert list_served(found) == ["a", "d"]
    why = {turn.run.id: turn.wait_reason for turn in found}
    assert why["b"] == "project default uses 2 of its 3 workers at once"
    assert why["c"] == "project default uses 600 of its 1,000 tokens in 24 hours"


def test_what_is_above_a_limit_by_itself_never_starts():
    found = plan(make_waiting("a", workers=4), limits=make_project("default", max_workers=3))
    assert found[0].rejection == "needs 4 workers at once; the limit of project default is 3"
    closed = plan(make_waiting("a"), limits=make_project("default", max_runs=0))
    assert closed[0].rejection == "needs 1 runs at once; the limit of project default is 0"


def test_what_is_held_waits_for_what_holds_it():
    found = plan(make_waiting("a"), make_waiting("b"), held={"a": "another one is before it"})
    assert list_served(found) == ["b"]
    assert found[0].wait_reason == "another one is before it"
