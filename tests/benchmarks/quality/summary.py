"""The results of a data set as rows: one a method, over the seeds at its best rates. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.benchmarks.quality.corpora import Corpus
from tests.benchmarks.quality.results_file import Line, Results
from tests.benchmarks.quality.schedule import find_lines, find_state
from tests.benchmarks.quality.variants import Variant

REFERENCE = "lora r4"
"""The method to whose last validation figure tokens are counted."""
LATE = 0.8
"""The share of the steps after which a gain is late: a curve that still rises has not flattened."""


@dataclass(frozen=True)
class MethodSummary:
    """What one method reached on one data set."""

    method: str
    rates: dict[str, float]
    seeds: int
    diverged: int
    mean: float
    low: float
    high: float
    trained: int
    parameters: int
    bytes_a_step: int
    """Of the stage that exchanges most."""
    megabytes: float
    """Exchanged over the training, 10^6 bytes."""
    tokens: int
    tokens_to_target: float | None
    """None if a seed did not reach it."""
    late_gain: float
    """Of the validation figure over the last fifth of the steps, in the better direction."""
    seconds: float
    handoff_loss: float | None
    """Share of the sparse stage's gain in loss that the hand-off lost; None without one."""
    dtype: str


def summarize_corpus(
    corpus: Corpus, variants: Iterable[Variant], results: Results
) -> list[MethodSummary]:
    """Return a row for each method whose search is over, in their order."""
    target = compute_target(corpus, variants := list(variants), results)
    summaries = []
    for variant in variants:
        lines = find_lines(corpus, variant, results)
        whole = [line for line in lines if "test" in line]
        state = find_state(corpus, variant, results)
        if state is not None and whole:
            diverged = len(lines) - len(whole)
            rates = dict(state.point)
            summaries.append(_summarize(corpus, variant, rates, whole, diverged, target))
    return summaries


def compute_target(corpus: Corpus, variants: Sequence[Variant], results: Results) -> float | None:
    """Return the mean of the last validation figures of the reference, if it has any."""
    for variant in variants:
        if variant.name == REFERENCE:
            lines = [r for r in find_lines(corpus, variant, results) if "validation" in r]
            return statistics.fmean(line["validation"] for line in lines) if lines else None
    return None


def count_tokens_to(line: Line, target: float, sign: int) -> float | None:
    """Return the tokens at which the line between evaluations first meets the target, or None."""
    points = [(tokens, sign * figure) for _, tokens, figure in line["curve"]]
    goal = sign * target
    if points and points[0][1] >= goal:
        return float(points[0][0])
    for (start, before), (end, after) in pairwise(points):
        if before < goal <= after:
            return float(start + (end - start) * (goal - before) / (after - before))
    return None


def compute_handoff_loss(line: Line) -> float | None:
    """Return the share of the sparse stage's gain in loss that was lost at the hand-off."""
    losses = {name: metrics["loss"] for name, metrics in line["evaluations"].items()}
    if not {"before", "sparse", "handoff"} <= losses.keys():
        return None
    gain = losses["before"] - losses["sparse"]
    return (losses["handoff"] - losses["sparse"]) / gain if gain > 0 else None


def _summarize(
    corpus: Corpus,
    variant: Variant,
    rates: dict[str, float],
    lines: list[Line],
    diverged: int,
    target: float | None,
) -> MethodSummary:
    tests = [line["test"] for line in lines]
    reached = [
        None if target is None else count_tokens_to(line, target, corpus.sign) for line in lines
    ]
    known = [tokens for tokens in reached if tokens is not None]
    lost = [share for line in lines if (share := compute_handoff_loss(line)) is not None]
    first = lines[0]
    return MethodSummary(
        method=variant.name,
        rates=rates,
        seeds=len(lines),
        diverged=diverged,
        mean=statistics.fmean(tests),
        low=min(tests),
        high=max(tests),
        trained=first["trained"],
        parameters=first["parameters"],
        bytes_a_step=max(stage["bytes_a_step"] for stage in first["stages"]),
        megabytes=first["bytes"] / 1e6,
        tokens=first["tokens"],
        tokens_to_target=statistics.fmean(known) if len(known) == len(lines) else None,
        late_gain=statistics.fmean(_compute_late_gain(line, corpus.sign) for line in lines),
        seconds=statistics.median(line["seconds"] for line in lines),
        handoff_loss=statistics.fmean(lost) if lost else None,
        dtype=first["dtype"],
    )


def _compute_late_gain(line: Line, sign: int) -> float:
    curve, steps = line["curve"], line["steps"]
    early = [figure for step, _, figure in curve if step <= LATE * steps]
    return float(sign * (curve[-1][2] - early[-1])) if early else 0.0


def average_curves(lines: Sequence[Line], cost: str) -> list[tuple[float, float]]:
    """Return the mean validation curve over seeds, against `tokens` or `bytes` (10^6)."""
    curves = [_cost_curve(line, cost) for line in lines]
    length = min(map(len, curves), default=0)
    return [
        (
            statistics.fmean(curve[at][0] for curve in curves),
            statistics.fmean(curve[at][1] for curve in curves),
        )
        for at in range(length)
    ]


def _cost_curve(line: Line, cost: str) -> list[tuple[float, float]]:
    if cost == "tokens":
        return [(float(tokens), figure) for _, tokens, figure in line["curve"]]
    return [(_count_bytes(line, step) / 1e6, figure) for step, _, figure in line["curve"]]


def _count_bytes(line: Line, step: int) -> float:
    total, left = 0, step
    for stage in line["stages"]:
        steps = min(left, stage["steps"])
        total, left = total + steps * stage["bytes_a_step"], left - steps
    return float(total)


def list_machines(results: Results, corpus: Corpus) -> dict[str, Any]:
    """Return the machines, code versions and library versions of a data set's results."""
    lines = [line for line in results.values() if line.get("data") == corpus.name]
    libraries = sorted(
        {f"{name} {number}" for line in lines for name, number in line.get("libraries", {}).items()}
    )
    return {
        "machines": sorted({line["machine"] for line in lines if "machine" in line}),
        "code": sorted({line["code"] for line in lines if "code" in line}),
        "libraries": libraries,
        "runs": len(lines),
    }
