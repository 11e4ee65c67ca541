"""Which trainings are due, what came out, and whether a candidate pays: functions of the results.

No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.candidates.arms import ARMS, Arm, Candidate, Point
from tests.benchmarks.quality.results_file import Line, Results

ENOUGH_SEEDS = 3
"""Of each side, before a difference counts."""
DROP_MARGIN = 0.05
"""A candidate that far below the product on seed 0, in validation accuracy, runs on no other."""


@dataclass(frozen=True)
class DueTraining:
    """One training that is due."""

    arm: Arm
    point: Point
    seed: int

    @property
    def key(self) -> str:
        """Return the key of its line."""
        return self.arm.make_key(self.point, self.seed)

    @property
    def label(self) -> str:
        """Return the training for people."""
        values = ", ".join(f"{axis} {value:g}" for axis, value in self.point.items())
        return f"{self.arm.name}, {values}, seed {self.seed}"


def find_best_point(arm: Arm, results: Results) -> Point | None:
    """Return the point with the best validation accuracy on seed 0, the lowest loss among equals;
    None while its grid is open, or if all of it has diverged.
    """
    if arm.like is not None:
        return find_best_point(ARMS[arm.like], results)
    lines = [results.get(arm.make_key(point, 0)) for point in arm.points]
    if None in lines:
        return None
    scored = [
        ((line["validation"], -line["validation_loss"], -index), index)
        for index, line in enumerate(lines)
        if line is not None and "validation" in line
    ]
    return arm.points[max(scored)[1]] if scored else None


def list_due(candidates: Sequence[Candidate], results: Results, seeds: int) -> list[DueTraining]:
    """Return the trainings that can run now: all grids on seed 0, then seed after seed."""
    names = dict.fromkeys(name for candidate in candidates for name in candidate.arms)
    arms = dict.fromkeys(part for name in names for part in (ARMS[name].like or name, name))
    dropped = {name for candidate in candidates for name in find_dropped(candidate, results)}
    due = [DueTraining(ARMS[n], point, 0) for n in arms for point in ARMS[n].points]
    for seed in range(seeds):
        for name in arms:
            point = find_best_point(ARMS[name], results)
            if point is not None and (seed == 0 or name not in dropped):
                due.append(DueTraining(ARMS[name], point, seed))
    by_key = {training.key: training for training in reversed(due)}
    ordered = dict.fromkeys(training.key for training in due)
    return [by_key[key] for key in ordered if key not in results]


def find_dropped(candidate: Candidate, results: Results) -> set[str]:
    """Return the arms that the product lacks and that are far below its best on seed 0."""
    figures = {}
    for name in candidate.arms:
        point = find_best_point(ARMS[name], results)
        line = None if point is None else results.get(ARMS[name].make_key(point, 0))
        if line is not None and "validation" in line:
            figures[name] = line["validation"]
    product = [figures[name] for name in candidate.product if name in figures]
    if not product:
        return set()
    others = [name for name in candidate.others if name in figures]
    return {name for name in others if figures[name] < max(product) - DROP_MARGIN}


@dataclass(frozen=True)
class ArmSummary:
    """What one arm reached at its best point."""

    arm: str
    point: Point
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    """On the test rows, by seed."""
    loss: float
    before: float | None
    """Validation loss before the hand-off, mean; None without one."""
    after: float | None
    seconds: float
    """Processor time of a training, median, evaluations included."""
    is_edge: bool
    """Whether the best point is the first or the last of a grid of its own."""

    @property
    def mean(self) -> float:
        """Return the mean accuracy."""
        return statistics.fmean(self.accuracies)


def summarize_arm(arm: Arm, results: Results, seeds: int) -> ArmSummary | None:
    """Return the arm's row; None while its best point is open."""
    point = find_best_point(arm, results)
    if point is None:
        return None
    found = {seed: results.get(arm.make_key(point, seed)) for seed in range(seeds)}
    lines = {s: line for s, line in found.items() if line is not None and "test" in line}
    if not lines:
        return None
    return ArmSummary(
        arm=arm.name,
        point=point,
        seeds=tuple(lines),
        accuracies=tuple(line["test"] for line in lines.values()),
        loss=statistics.fmean(line["test_loss"] for line in lines.values()),
        before=_average(list(lines.values()), "before"),
        after=_average(list(lines.values()), "after"),
        seconds=statistics.median(line["cpu_seconds"] for line in lines.values()),
        is_edge=len(arm.points) > 2 and point in (arm.points[0], arm.points[-1]),
    )


def _average(lines: Sequence[Line], name: str) -> float | None:
    values = [line["handoff"][name] for line in lines if line.get("handoff")]
    return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Verdict:
    """A candidate's arm beside one of the product's."""

    arm: str
    product: str
    differences: tuple[float, ...]
    """Of accuracy, by seed that both have."""
    is_better: bool
    """Its worst seed is above the product's best, with enough seeds of both."""


def judge_candidate(candidate: Candidate, results: Results, seeds: int) -> list[Verdict]:
    """Return each arm that the product lacks beside each of the product's."""
    rows = {name: summarize_arm(ARMS[name], results, seeds) for name in candidate.arms}
    verdicts = []
    for name in candidate.others:
        for product in candidate.product:
            row, reference = rows[name], rows[product]
            if row is not None and reference is not None:
                verdicts.append(_compare(row, reference))
    return verdicts


def _compare(row: ArmSummary, reference: ArmSummary) -> Verdict:
    ours = dict(zip(row.seeds, row.accuracies, strict=True))
    theirs = dict(zip(reference.seeds, reference.accuracies, strict=True))
    shared = [seed for seed in ours if seed in theirs]
    is_better = (
        min(len(ours), len(theirs)) >= ENOUGH_SEEDS
        and min(row.accuracies) > max(reference.accuracies)
    )  # fmt: skip
    differences = tuple(ours[seed] - theirs[seed] for seed in shared)
    return Verdict(row.arm, reference.arm, differences, is_better)


HEADER = ("arm", "point", "seeds", "acc", "range", "loss", "hand-off", "s")
LEGEND = (
    "point: the best of the grid on seed 0 and validation rows (* at its edge):\n"
    "rate, then the sparse rate or the pull; acc, range: test accuracy in %, mean\n"
    "and lowest..highest seed; loss: on the test rows; hand-off: validation loss\n"
    "before > after it; s: processor time of a training, evaluations and a shared\n"
    "sparse stage included. A - B: points of accuracy; better: A's worst of three\n"
    "seeds is above B's best"
)


def format_table(candidates: Sequence[Candidate], results: Results, seeds: int) -> str:
    """Return the tables of the candidates with their verdicts, in 80 columns."""
    blocks = []
    for candidate in candidates:
        rows = [summarize_arm(ARMS[name], results, seeds) for name in candidate.arms]
        cells = [_format_row(row) for row in rows if row is not None]
        if cells:
            verdicts = map(_format_verdict, judge_candidate(candidate, results, seeds))
            blocks.append("\n".join([candidate.name, _align([HEADER, *cells]), *verdicts]))
    return "\n\n".join([*blocks, LEGEND]) if blocks else "no results yet"


def _format_row(row: ArmSummary) -> tuple[str, ...]:
    point = " ".join(f"{value:.0e}".replace("e-0", "e-") for value in row.point.values())
    low, high = (f"{100 * value:.1f}" for value in (min(row.accuracies), max(row.accuracies)))
    handoff = "" if row.before is None else f"{row.before:.3f}>{row.after:.3f}"
    return (row.arm, point + "*" * row.is_edge, str(len(row.seeds)), f"{100 * row.mean:.1f}",
            f"{low}..{high}", f"{row.loss:.3f}", handoff, f"{row.seconds:.0f}")  # fmt: skip


def _align(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _format_verdict(verdict: Verdict) -> str:
    mean, (low, high) = 0.0, (0.0, 0.0)
    if verdict.differences:
        mean = statistics.fmean(verdict.differences)
        low, high = min(verdict.differences), max(verdict.differences)
    answer = "better" if verdict.is_better else "not better"
    return (
        f"  {verdict.arm} - {verdict.product}: {100 * mean:+.1f} "
        f"({100 * low:+.1f}..{100 * high:+.1f} by seed): {answer}"
    )


def describe_results(
    candidates: Sequence[Candidate], results: Results, seeds: int
) -> list[dict[str, Any]]:
    """Return rows and verdicts as JSON's values."""
    described = []
    for candidate in candidates:
        rows = [summarize_arm(ARMS[name], results, seeds) for name in candidate.arms]
        described.append(
            {
                "candidate": candidate.name,
                "arms": [{**vars(row), "mean": row.mean} for row in rows if row is not None],
                "verdicts": [vars(v) for v in judge_candidate(candidate, results, seeds)],
            }
        )
    return described
