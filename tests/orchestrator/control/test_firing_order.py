"""Projects take turns at firing, within the budget of a tick."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from orchestrator.control.shares.firing_order import FiringBudget, FiringOrder
from orchestrator.registry.schedules import DueSchedule


def make_due(project: str, number: int, next_at: float = 0.0) -> DueSchedule:
    return DueSchedule(number, project, f"{project}{number}", next_at)


def fire(order: FiringOrder, due: Iterable[DueSchedule], firings: int = 1) -> list[str]:
    names = []
    for schedule in order.iterate_due(due):
        names.append(schedule.name)
        order.count_firings(schedule.project, firings)
    return names


def test_one_schedule_does_not_wait_for_the_hundreds_of_another_project():
    many = [make_due("loud", number, number) for number in range(600)]
    names = fire(FiringOrder(), [*many, make_due("quiet", 1, 1000)])
    assert names[:2] == ["loud0", "quiet1"] and len(names) == 100


def test_a_schedule_with_many_missed_times_uses_its_projects_turns():
    order = FiringOrder()
    due = [make_due("a", 0, 0), make_due("a", 1, 1), make_due("b", 0, 2), make_due("b", 1, 3)]
    names = []
    for schedule in order.iterate_due(due):
        names.append(schedule.name)
        order.count_firings(schedule.project, 10 if schedule.name == "a0" else 1)
    assert names == ["a0", "b0", "b1", "a1"]


def test_the_next_tick_continues_with_the_project_that_waited_longest():
    order = FiringOrder(FiringBudget(firings=2))
    names = []
    for _ in range(3):
        names += fire(order, [make_due(project, 0, ord(project)) for project in "abc"])
    assert names == ["a0", "b0", "c0", "a0", "b0", "c0"]


def test_a_tick_ends_when_its_time_is_spent():
    seconds = count(0.0, 1.0)
    order = FiringOrder(FiringBudget(seconds=3.5), timer=lambda: next(seconds))
    assert len(fire(order, [make_due("a", number) for number in range(10)])) == 3


def test_schedules_that_do_not_fire_end_with_the_list():
    assert len(fire(FiringOrder(), [make_due("a", n) for n in range(300)], firings=0)) == 300
