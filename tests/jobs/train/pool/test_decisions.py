"""What a pool does next, as tables."""

from __future__ import annotations

from dataclasses import replace

from jobs.train.pool.decisions import (
    IDLE_TIMEOUT_S,
    PoolDecision,
    PoolState,
    choose_nodes,
    decide,
    spread_workers,
)

FULL = PoolState(target=2, idle=2, lent=0, free_cpus=2, idle_s=0, is_due=False)
START = PoolState(target=2, idle=0, lent=0, free_cpus=2, idle_s=0, is_due=True)


def test_a_pool_starts_workers_after_a_run_and_ends_when_nobody_borrows():
    cases = {
        "a new pool": (START, PoolDecision(start=2)),
        "full": (FULL, PoolDecision()),
        "one is missing": (replace(START, idle=1), PoolDecision(start=1)),
        "during a run": (replace(START, lent=2, free_cpus=0), PoolDecision()),
        "during a run with free CPUs": (replace(START, lent=2), PoolDecision(start=2)),
        "on a busy cluster": (replace(START, free_cpus=1), PoolDecision()),
        "one died idle": (replace(FULL, idle=1), PoolDecision()),
        "fewer are wanted": (replace(FULL, target=1), PoolDecision()),
        "none are wanted": (replace(START, target=0), PoolDecision()),
        "idle for long": (replace(FULL, idle_s=IDLE_TIMEOUT_S), PoolDecision(end=True)),
        "not yet": (replace(FULL, idle_s=IDLE_TIMEOUT_S - 1), PoolDecision()),
        "a long run": (replace(FULL, lent=1, idle_s=IDLE_TIMEOUT_S), PoolDecision()),
        "replaced": (replace(FULL, is_replaced=True), PoolDecision(end=True)),
        "replaced in a run": (replace(START, lent=2, is_replaced=True), PoolDecision()),
    }
    for case, (state, decision) in cases.items():
        assert decide(state) == decision, case


def test_workers_are_lent_on_as_few_nodes_as_possible_and_all_or_none():
    cases = [
        ([], 1, None),
        (["a"], 2, None),
        (["a", "b"], 2, ["a", "b"]),
        (["a", "b", "b"], 2, ["b", "b"]),
        (["a", "b", "b"], 3, ["b", "b", "a"]),
        (["b", "a"], 1, ["a"]),
    ]
    for idle, count, nodes in cases:
        assert choose_nodes(idle, count) == nodes


def test_workers_are_lent_on_the_nodes_that_are_reserved_already_or_not_at_all():
    cases = [(["b", "a"], ["b", "a"]), (["b", "b"], None), (["c", "a"], None), (["b"], ["b"])]
    for wanted, nodes in cases:
        assert choose_nodes(["a", "a", "b"], len(wanted), wanted=wanted) == nodes


def test_workers_start_where_a_run_of_them_fits():
    cases = [
        (2, {"a": 2}, {}, ["a", "a"]),
        (2, {"a": 1, "b": 2}, {}, ["b", "b"]),
        (2, {"a": 4, "b": 2}, {"b": 1}, ["b", "a"]),
        (3, {"a": 1}, {}, ["a"]),
        (1, {"head": 0}, {}, []),
        (2, {"a": 2}, {"a": 2}, []),
        (1, {"a": 1}, {"gone": 3}, ["a"]),
    ]
    for count, capacities, present, nodes in cases:
        assert spread_workers(count, capacities, present) == nodes
