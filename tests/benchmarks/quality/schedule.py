"""Which trainings are due, the most useful first, given the results: a pure function of both.

Within a tier: the first grids of all methods, then what their searches need, then two more seeds at
the best rates, then the fifth seed where the spreads of two compared methods overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.quality.corpora import Corpus
from tests.benchmarks.quality.rate_search import (
    SearchState,
    center_grid,
    get_start,
    search_rates,
)
from tests.benchmarks.quality.results_file import Line, Results
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.variants import BY_NAME, LADDER, Grid, Point, Variant, shift_rate

SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
"""Rates are chosen on the first. More: where two spreads overlap."""
LANGUAGE_MODEL_SHIFT = -1
"""Steps on the ladder: a pretrained language model takes less than an encoder with a new head."""
FIRST_GRID, SEARCH, REPEAT, OVERLAP = range(4)
Pair = tuple[str, str, str]
"""A data set, and two variants that a claim compares on it."""


@dataclass(frozen=True)
class DueRun:
    """A training that is due."""

    setting: Setting
    phase: int
    """FIRST_GRID | SEARCH | REPEAT | OVERLAP."""


def get_grids(corpus: Corpus, variant: Variant, results: Results) -> Mapping[str, Grid] | None:
    """Return the first grid of each axis, or None while the search that it starts from is open."""
    if variant.near is None:
        grids = {axis: grid for axis, grid in variant.grids.items() if _has_axis(corpus, axis)}
        shift = 0 if corpus.has_head else LANGUAGE_MODEL_SHIFT
        return {
            axis: tuple(shift_rate(rate, shift) for rate in grid) for axis, grid in grids.items()
        }
    nearest = find_state(corpus, BY_NAME[variant.near], results)
    if nearest is None or not nearest.is_over:
        return None
    return {
        axis: center_grid(rate, 1, 2 if axis == "adapter" else 1)
        for axis, rate in nearest.point.items()
    }


def find_state(corpus: Corpus, variant: Variant, results: Results) -> SearchState | None:
    """Return how far a variant's search is, or None while it waits for another variant's."""
    if variant.like is not None:
        return _follow_search(corpus, variant, results)
    grids = get_grids(corpus, variant, results)
    if grids is None:
        return None
    return search_rates(grids, partial(_score_point, corpus, variant, results))


def find_lines(corpus: Corpus, variant: Variant, results: Results) -> list[Line]:
    """Return the results at the best point by seed; none while the search is open."""
    state = find_state(corpus, variant, results)
    if state is None or not state.is_over:
        return []
    settings = [Setting(corpus, variant, state.point, seed) for seed in (*SEEDS, *MORE_SEEDS)]
    return [results[s.key] for s in settings if s.key in results]


def list_due(
    corpora: Sequence[Corpus],
    variants: Sequence[Variant],
    results: Results,
    pairs: Iterable[Pair] = (),
) -> list[DueRun]:
    """Return the trainings that can run now, in their order; each of them once."""
    overlapping = find_overlaps(corpora, results, pairs)
    ranked = []
    for column, corpus in enumerate(corpora):
        for row, variant in enumerate(variants):
            has_overlap = (corpus.name, variant.name) in overlapping
            for run in _list_runs(corpus, variant, results, has_overlap=has_overlap):
                seed = run.setting.seed
                ranked.append(((variant.tier, run.phase, seed, column, row), run))
    ranked.sort(key=lambda pair: pair[0])
    unique = {run.setting.key: run for _, run in reversed(ranked)}
    ordered = dict.fromkeys(run.setting.key for _, run in ranked)
    return [unique[key] for key in ordered]


def find_overlaps(
    corpora: Sequence[Corpus], results: Results, pairs: Iterable[Pair]
) -> set[tuple[str, str]]:
    """Return the (data set, variant) of both sides of the pairs whose spreads overlap."""
    by_name = {corpus.name: corpus for corpus in corpora}
    overlapping = set()
    for name, left, right in pairs:
        if name not in by_name:
            continue
        sides = [_list_figures(by_name[name], BY_NAME[side], results) for side in (left, right)]
        is_known = all(len(side) >= len(SEEDS) for side in sides)
        if is_known and max(map(min, sides)) <= min(map(max, sides)):
            overlapping |= {(name, left), (name, right)}
    return overlapping


def forecast_runs(
    corpora: Sequence[Corpus],
    variants: Sequence[Variant],
    results: Results,
    pairs: Iterable[Pair] = (),
) -> list[Setting]:
    """Return the trainings that are left if every best rate is where it is now, or where its
    search starts: the least that the plan needs.
    """
    known, runs = dict(results), list[Setting]()
    pairs = [pair for pair in pairs if find_overlaps(corpora, results, [pair])]
    while due := list_due(corpora, variants, known, pairs):
        for run in due:
            setting = run.setting
            runs.append(setting)
            known[setting.key] = _imagine_line(setting, known)
    return runs


def _list_runs(
    corpus: Corpus, variant: Variant, results: Results, *, has_overlap: bool
) -> Iterator[DueRun]:
    state = find_state(corpus, variant, results)
    if state is None:
        return
    for point in state.due:
        phase = FIRST_GRID if state.is_first_grid else SEARCH
        yield DueRun(Setting(corpus, variant, point, SEEDS[0]), phase)
    if not state.is_over:
        return
    seeds = SEEDS[:1] if variant.at_start else (*SEEDS, *(MORE_SEEDS if has_overlap else ()))
    for seed in seeds:
        setting = Setting(corpus, variant, state.point, seed)
        if setting.key not in results:
            phase = OVERLAP if seed in MORE_SEEDS else REPEAT
            yield DueRun(setting, FIRST_GRID if variant.at_start else phase)


def _follow_search(corpus: Corpus, variant: Variant, results: Results) -> SearchState | None:
    """Return the state of the variant that this one is like: its best point, or its start."""
    assert variant.like is not None
    leader = BY_NAME[variant.like]
    if variant.at_start:
        grids = get_grids(corpus, leader, results)
        if grids is None:
            return None
        return SearchState(get_start(grids), (), is_first_grid=False)
    state = find_state(corpus, leader, results)
    if state is None or not state.is_over:
        return None
    point = {variant.renamed.get(axis, axis): rate for axis, rate in state.point.items()}
    return SearchState(point, (), is_first_grid=False)


def _score_point(corpus: Corpus, variant: Variant, results: Results, point: Point) -> float | None:
    line = results.get(Setting(corpus, variant, point, SEEDS[0]).key)
    if line is None:
        return None
    return corpus.sign * line["validation"] if "validation" in line else -math.inf


def _list_figures(corpus: Corpus, variant: Variant, results: Results) -> list[float]:
    return [line["test"] for line in find_lines(corpus, variant, results) if "test" in line]


def _has_axis(corpus: Corpus, axis: str) -> bool:
    return axis != "head" or corpus.has_head


def _imagine_line(setting: Setting, known: Results) -> dict[str, float]:
    """Return a result that is worse than any real one, and worse the further from the start."""
    grids = get_grids(setting.corpus, setting.variant, known) or {}
    steps = sum(
        abs(LADDER.index(setting.point[axis]) - LADDER.index(rate))
        for axis, rate in get_start(grids).items()
    )
    figure = -setting.corpus.sign * (1000.0 + steps)
    return {"validation": figure, "test": figure}
