"""The order of the queue, and the reasons to wait."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.control.queue import ProjectUsage, QueueDecision, UsageTracker, plan_queue
from orchestrator.registry.values import Project, Run
from tests.orchestrator.control.builders import make_run

FREE_SLOTS = 100


def make_waiting(run_id: str, project: str = "default", **changes: int) -> Run:
    return make_run(id=run_id, project=project, **changes)


def make_project(name: str, **limits: int | None) -> Project:
    none = {"max_runs": None, "max_workers": None, "max_tokens_a_day": None}
    return Project(name=name, created_at=0.0, revision=1, **{**none, **limits})


def plan(
    *runs: Run,
    usage: Mapping[str, ProjectUsage] | None = None,
    limits: Project | None = None,
    free_slots: int = FREE_SLOTS,
    blocked: Mapping[str, str] | None = None,
) -> list[QueueDecision]:
    projects = {limits.name: limits} if limits else {}
    return list(
        plan_queue(runs, UsageTracker(dict(usage or {})), projects, free_slots, blocked or {})
    )


def list_served(decisions: list[QueueDecision]) -> list[str]:
    return [
        decision.run.id
        for decision in decisions
        if not decision.wait_reason and not decision.rejection
    ]


def test_runs_start_by_priority_and_then_by_age():
    old, new = make_waiting("old", created_at=1), make_waiting("new", created_at=2)
    urgent = make_waiting("urgent", created_at=3, priority=5)
    assert list_served(plan(new, old, urgent)) == ["urgent", "old", "new"]


def test_a_project_that_uses_less_comes_before_an_older_run():
    mine = [make_waiting(f"mine{i}", "mine", created_at=i) for i in range(3)]
    yours = [make_waiting(f"yours{i}", "yours", created_at=10 + i) for i in range(2)]
    order = list_served(plan(*mine, *yours))
    assert order == ["mine0", "yours0", "mine1", "yours1", "mine2"]
    busy = list_served(plan(*mine, *yours, usage={"mine": ProjectUsage(runs=2, workers=2)}))
    assert busy[:2] == ["yours0", "yours1"]


def test_a_run_without_a_free_slot_waits_with_a_reason():
    decisions = plan(make_waiting("a", created_at=1), make_waiting("b", created_at=2), free_slots=1)
    assert list_served(decisions) == ["a"]
    assert decisions[1].wait_reason == "cluster default is at its limit of active runs (max_runs)"


def test_a_project_at_its_limit_does_not_block_others():
    limits = make_project("mine", max_runs=1)
    decisions = plan(
        make_waiting("a", "mine", created_at=1),
        make_waiting("b", "mine", created_at=2),
        make_waiting("c", "yours", created_at=3),
        limits=limits,
    )
    assert list_served(decisions) == ["a", "c"]
    assert [decision.wait_reason for decision in decisions if decision.run.id == "b"] == [
        "project mine uses 1 of its 1 runs at once"
    ]


def test_workers_and_tokens_are_counted_as_runs_start():
    limits = make_project("default", max_workers=3, max_tokens_a_day=1000)
    decisions = plan(
        make_waiting("a", workers=2, tokens=600, created_at=1),
        make_waiting("b", workers=2, tokens=100, created_at=2),
        make_waiting("c", workers=1, tokens=500, created_at=3),
        make_waiting("d", workers=1, tokens=100, created_at=4),
        limits=limits,
    )
    assert list_served(decisions) == ["a", "d"]
    wait_reasons = {decision.run.id: decision.wait_reason for decision in decisions}
    assert wait_reasons["b"] == "project default uses 2 of its 3 workers at once"
    assert wait_reasons["c"] == "project default uses 600 of its 1,000 tokens in 24 hours"


def test_a_run_above_a_limit_is_rejected():
    decisions = plan(make_waiting("a", workers=4), limits=make_project("default", max_workers=3))
    assert (
        decisions[0].rejection
        == "the run needs 4 workers at once; the limit of project default is 3"
    )
    closed = plan(make_waiting("a"), limits=make_project("default", max_runs=0))
    assert closed[0].rejection == "the run needs 1 runs at once; the limit of project default is 0"


def test_a_blocked_run_waits_with_its_reason():
    decisions = plan(
        make_waiting("a"), make_waiting("b"), blocked={"a": "another one is before it"}
    )
    assert list_served(decisions) == ["b"]
    assert decisions[0].wait_reason == "another one is before it"
