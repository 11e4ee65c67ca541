"""What a pool does next, and where its workers are: decisions on plain values. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

IDLE_TIMEOUT_S = 600.0
"""Seconds without a borrower after which a pool ends, and its workers with it."""


@dataclass(frozen=True)
class PoolState:
    """A pool at one moment."""

    target: int
    """Idle workers that it keeps, as far as runs of so many fit the cluster."""
    idle: int
    lent: int
    """Workers that are in a run now."""
    free_cpus: float
    """CPUs of the cluster that nobody has reserved."""
    idle_s: float
    """Seconds since it was last of use."""
    is_due: bool
    """Whether workers were lent since it last started some, or it has just started itself."""
    is_replaced: bool = False
    """Whether a pool of newer code has taken over."""


@dataclass(frozen=True)
class PoolDecision:
    """How many workers to start now, and whether to end."""

    start: int = 0
    end: bool = False


def decide(state: PoolState) -> PoolDecision:
    """Return the next action of a pool.

    It starts workers on free CPUs only, so after a run rather than during one, whose cores their
    imports would take. A worker that died idle is not replaced before workers were lent again:
    whatever ended it, such as a lack of memory, would end the next one too.
    """
    if state.lent == 0 and (state.is_replaced or state.idle_s >= IDLE_TIMEOUT_S):
        return PoolDecision(end=True)
    missing = state.target - state.idle
    if missing <= 0 or not state.is_due or state.is_replaced:
        return PoolDecision()
    if state.free_cpus < missing:
        return PoolDecision()
    return PoolDecision(start=missing)


def choose_nodes(
    idle: Sequence[str], count: int, *, wanted: Sequence[str] | None = None
) -> list[str] | None:
    """Return the node of each of `count` workers, from the nodes of the idle ones.

    They are those that are `wanted`, or as few as possible, the fullest first. None if there are
    too few idle workers.
    """
    if wanted is not None:
        return list(wanted) if Counter(wanted) <= Counter(idle) else None
    if len(idle) < count:
        return None
    ranked = sorted(Counter(idle).items(), key=lambda item: (-item[1], item[0]))
    return [node for node, number in ranked for _ in range(number)][:count]


def spread_workers(
    count: int, capacities: Mapping[str, int], present: Mapping[str, int]
) -> list[str]:
    """Return the nodes on which to start `count` workers, one entry for each.

    `capacities`: how many workers of a run fit each node; `present`: the pool's on each. Nodes with
    most of them come first, so that a run finds its workers together. Nothing is started beyond.
    """
    free = {node: capacity - present.get(node, 0) for node, capacity in capacities.items()}
    ranked = sorted(free, key=lambda node: (-present.get(node, 0), -free[node], node))
    return [node for node in ranked for _ in range(max(0, free[node]))][:count]
