"""Which rates a variant is due to run at, and which won: a search by coordinates. No torch.

One axis after the other: a grid of four rates, extended along the ladder until the best lies inside
(or the ladder ends); then, from the second sweep on, the neighbours of each axis are tried again at
the point that the other axes have moved to, until no axis moves. A product of all grids is never
run. A function of the results, so that a stopped search continues where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.quality.variants import MIDDLE, Grid, Point, shift_rate

MAX_SWEEPS = 4
Score = Callable[[Point], float | None]
"""Return how good a point is, higher being better; None if it has not been run."""


@dataclass(frozen=True)
class SearchState:
    """How far a search is."""

    point: Point
    """The best so far."""
    due: tuple[Point, ...]
    """Points to run before the search can go on; empty where it is over."""
    is_first_grid: bool
    """Whether these points belong to the first grid of the first axis."""

    @property
    def is_over(self) -> bool:
        """Return whether `point` is the best point."""
        return not self.due


def get_start(grids: Mapping[str, Grid]) -> dict[str, float]:
    """Return the point that a search starts at: the middle of each axis."""
    return {axis: grid[MIDDLE] for axis, grid in grids.items()}


def search_rates(grids: Mapping[str, Grid], score: Score) -> SearchState:
    """Return the state of the search over these axes, in their order."""
    point = get_start(grids)
    for sweep in range(MAX_SWEEPS):
        start = dict(point)
        for axis, grid in grids.items():
            first = grid if sweep == 0 else center_grid(point[axis], 1, 1)
            rate, due, is_extended = _search_axis(axis, first, point, score)
            if due:
                is_first = sweep == 0 and axis == next(iter(grids)) and not is_extended
                return SearchState(point, due, is_first_grid=is_first)
            point[axis] = rate
        if sweep and point == start:
            break
    return SearchState(point, (), is_first_grid=False)


def center_grid(rate: float, below: int, above: int) -> Grid:
    """Return the ladder's rates around this one."""
    rates = (shift_rate(rate, steps) for steps in range(-below, above + 1))
    return tuple(dict.fromkeys(rates))


def _search_axis(
    axis: str, grid: Grid, point: Point, score: Score
) -> tuple[float, tuple[Point, ...], bool]:
    """Return the best rate of the axis, the points that are missing to know it, and whether the
    grid was extended.
    """
    rates = sorted(grid)
    while True:
        points = [{**point, axis: rate} for rate in rates]
        scores = [score(candidate) for candidate in points]
        missing = tuple(p for p, known in zip(points, scores, strict=True) if known is None)
        is_extended = len(rates) > len(grid)
        if missing:
            return point[axis], missing, is_extended
        best = _find_best(scores)
        more = {shift_rate(rates[best], -1), shift_rate(rates[best], 1)} - {*rates}
        if not more or 0 < best < len(rates) - 1:
            return rates[best], (), is_extended
        rates = sorted({*rates, *more})


def _find_best(scores: Sequence[float | None]) -> int:
    """Return the index of the best score: of equal ones that inside the grid, else the lowest rate,
    which is where a grid that has diverged is extended.
    """
    last = len(scores) - 1

    def rank(at: int) -> tuple[float, bool, int]:
        score = scores[at]
        assert score is not None
        return (score, math.isfinite(score) and 0 < at < last, -at)

    return max(range(len(scores)), key=rank)
