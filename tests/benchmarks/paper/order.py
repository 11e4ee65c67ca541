"""Which trainings are wanted, the most important first, given what is done; which rates won."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.benchmarks.paper.plan import (
    CORE,
    HARDEST,
    RIVALS,
    Part,
    Rates,
    Rival,
    Setting,
    as_rates,
    rates_of,
    setting,
)
from tests.benchmarks.quality.rate_search import SearchState, search_rates
from tests.benchmarks.quality.variants import Point

Results = Mapping[str, Mapping[str, Any]]
"""Finished trainings by key."""


def wanted(
    part: Part, rivals: Iterable[Rival], partitions: Iterable[str], done: Results
) -> Iterator[Setting]:
    """Every training that is due: repeats only where the grid they depend on is whole.

    Rates are chosen on the part's first partition and seed; then its other seeds, and then the
    other partitions at the same rates. An interrupted run has the goals' methods first.
    """
    chosen_from, named = part.partitions[0], list(partitions)
    mine = [rival for rival in rivals if part.name in rival.parts]
    core = [rival for rival in mine if rival.name in CORE]
    rest = [rival for rival in mine if rival.name not in CORE]
    for group in (core, rest):
        if chosen_from in named:
            for rival in group:
                yield from _tried(part, rival, done) if rival.grids else grid(part, rival)
            yield from _repeats(part, chosen_from, group, done)
    for partition in named:
        if partition != chosen_from:
            for group in (core, rest):
                yield from _repeats(part, partition, group, done)


def grid(part: Part, rival: Rival) -> Iterator[Setting]:
    """The method at every rate of its grid, on the partition and the seed that rates are chosen on.

    A variant has none.
    """
    for rates in rates_of(part, rival):
        yield setting(part, part.partitions[0], rival, rates, part.seeds[0])


def chosen(part: Part, rival: Rival, done: Results) -> Rates | None:
    """The rates with the best validation figure, of equal ones the lower; None until it is known.

    A grid counts when it is whole: a rate that diverged or was refused is tried, and not chosen.
    """
    of = next(one for one in RIVALS if one.name == rival.like) if rival.like else rival
    if of.grids:
        state = search(part, of, done)
        return as_rates(state.point) if state.is_over else None
    tried = [(one.rates, done[one.key]) for one in grid(part, of) if one.key in done]
    if not tried or len(tried) < len(rates_of(part, of)):
        return None
    sign = -1 if part.metric == "accuracy" else 1
    good = [(sign * found["validation"], rates) for rates, found in tried if "validation" in found]
    return min(good, key=lambda one: (one[0], one[1][1]))[1] if good else None


def search(part: Part, rival: Rival, done: Results) -> SearchState:
    """How far the search of a method with grids is, on the partition and the seed of `grid`."""

    def score(point: Point) -> float | None:
        one = setting(part, part.partitions[0], rival, as_rates(point), part.seeds[0])
        if one.key not in done:
            return None
        sign = 1 if part.metric == "accuracy" else -1
        figure = done[one.key].get("validation")
        return -math.inf if figure is None else sign * figure

    return search_rates(rival.grids, score)


def _tried(part: Part, rival: Rival, done: Results) -> Iterator[Setting]:
    for point in search(part, rival, done).due:
        yield setting(part, part.partitions[0], rival, as_rates(point), part.seeds[0])


def results(part: Part, partition: str, rival: Rival, done: Results) -> list[Mapping[str, Any]]:
    """What is there of a method on a partition at its chosen rates, by seed."""
    rates = chosen(part, rival, done)
    if rates is None:
        return []
    keys = [setting(part, partition, rival, rates, seed).key for seed in part.seeds]
    return [done[key] for key in keys if "points" in done.get(key, {})]


def _repeats(part: Part, partition: str, rivals: list[Rival], done: Results) -> Iterator[Setting]:
    for seed in part.seeds:
        for rival in rivals:
            if rival.like and partition != HARDEST:
                continue
            rates = chosen(part, rival, done)
            if rates is not None:
                yield setting(part, partition, rival, rates, seed)
