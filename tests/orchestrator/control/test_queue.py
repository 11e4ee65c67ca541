"""The order of the queue, and the reasons to wait."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.queue import QueueDecision, UsageTracker, plan_queue
from orchestrator.registry.usage import ProjectUsage
from orchestrator.registry.values import Project, Run
from tests.orchestrator.control.builders import make_run

FREE_SLOTS = 100


def make_waiting(run_id: str, project: str = "default", **changes: int) -> Run:
    return make_run(id=run_id, project=project, **changes)


def make_project(name: str, **limits: int | None) -> Project:
    none = {"max_runs": None, "max_workers": None, "max_tokens_a_day": None}
    values = {**none, "places": None, "models": None, **limits}
    return Project(name=name, created_at=0.0, revision=1, **values)


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


def test_cpus_gpus_and_stored_bytes_are_counted_as_runs_start():
    limits = make_project("default", max_cpus=8, max_gpus=2)
    decisions = plan(
        make_waiting("a", cpus=6, gpus=1, created_at=1),
        make_waiting("b", cpus=4, created_at=2),
        make_waiting("c", cpus=1, gpus=2, created_at=3),
        make_waiting("d", cpus=2, gpus=1, created_at=4),
        limits=limits,
    )
    assert list_served(decisions) == ["a", "d"]
    wait_reasons = {decision.run.id: decision.wait_reason for decision in decisions}
    assert wait_reasons["b"] == "project default uses 6 of its 8 CPUs at once"
    assert wait_reasons["c"] == "project default uses 1 of its 2 GPUs at once"
    closed = plan(make_waiting("a", gpus=3), limits=limits)
    assert "the run needs 3 GPUs at once" in closed[0].rejection


def test_a_run_waits_while_the_adapters_of_its_project_fill_its_store():
    (decision,) = plan(
        make_waiting("a"),
        usage={"default": ProjectUsage(stored_bytes=1000)},
        limits=make_project("default", max_stored_bytes=1000),
    )
    assert "project default stores 1,000 of its 1,000 bytes of adapters" in decision.wait_reason


def test_a_gpu_counts_more_than_a_cpu_in_the_order_of_projects():
    usage = {"gpu": ProjectUsage(workers=1, gpus=1), "cpu": ProjectUsage(workers=1, cpus=4)}
    order = plan(
        make_waiting("a", "gpu", gpus=1, created_at=1),
        make_waiting("b", "cpu", cpus=4, created_at=2),
        usage=usage,
    )
    assert list_served(order) == ["b", "a"]


class CountingRun(Run):
    """A run that counts how often its age is read, as each comparison of the order needs it."""

    reads = 0

    def __getattribute__(self, name: str) -> object:
        if name == "created_at":
            CountingRun.reads += 1
        return super().__getattribute__(name)


def test_the_cost_of_a_long_queue_grows_with_its_length_and_not_with_its_square():
    def count_reads(length: int) -> int:
        CountingRun.reads = 0
        waiting = [
            CountingRun(**{**vars(make_waiting(f"r{i:05}", f"p{i % 7}")), "created_at": -i})
            for i in range(length)
        ]
        decisions = plan(*waiting, free_slots=length)
        assert len(list_served(decisions)) == length
        return CountingRun.reads

    assert count_reads(1600) <= 2.2 * count_reads(800)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 3), st.integers(0, 5)),
        max_size=30,
    ),
    st.integers(0, 20),
)
def test_the_order_is_that_of_sorting_again_after_each_start(
    drawn: list[tuple[str, int, int, int]], free_slots: int
):
    waiting = [
        make_waiting(f"{i:02}", project, priority=priority, workers=workers, created_at=at)
        for i, (project, priority, workers, at) in enumerate(drawn)
    ]
    usage = dict.fromkeys("abc", 0)
    remaining, expected = list(waiting), []
    for _ in waiting:
        run = min(
            remaining, key=lambda run: (-run.priority, usage[run.project], run.created_at, run.id)
        )
        remaining.remove(run)
        expected.append(run.id)
        if len(expected) <= free_slots:
            usage[run.project] += run.workers
    decisions = plan(*waiting, free_slots=free_slots)
    assert [decision.run.id for decision in decisions] == expected
