"""What follows from a training's rounds: accuracy at equal bytes, seconds over a slow link.

A client's link carries what goes down and up; the clients of a round train and send side by side,
each over a link of its own, so that a round lasts as long as one client: its compute, which was
measured here, and its bytes over the rate. Latency and protocol are left out, for all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

RATES_MBIT = (1, 10, 100)


@dataclass(frozen=True)
class Point:
    """An evaluation, and what had been spent by then."""

    round: int
    figure: float
    client_mb: float
    """Up and down of one client that took part in every round, in MB of 10^6 bytes."""
    all_mb: float
    compute_s: float

    def seconds(self, mbit: float) -> float:
        """Until here where a client's link has this rate."""
        return self.compute_s + self.client_mb * 8 / mbit

    def cost(self, of: str) -> float:
        """On an axis: `MB`, or `N Mbit/s` for seconds at that rate."""
        return self.client_mb if of == "MB" else self.seconds(float(of.removesuffix(" Mbit/s")))


AXES = ("MB", *(f"{rate} Mbit/s" for rate in RATES_MBIT))


def curve(result: Mapping[str, Any], figure: str = "test") -> list[Point]:
    """The evaluations of one training, in order; two at one round are before and after a switch."""
    compute = _typical(result["rounds"])
    spent, found = {0: (0.0, 0.0, 0.0)}, list[Point]()
    client = everyone = seconds = 0.0
    for line in result["rounds"]:
        travelled = (line["down"] + line["up"]) / 1e6
        client += travelled / line["clients"]
        everyone += travelled
        seconds += compute[line["stage"]]
        spent[line["round"]] = (client, everyone, seconds)
    for point in result["points"]:
        if point.get(figure) is not None:
            found.append(Point(point["round"], point[figure], *spent[point["round"]]))
    return found


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over seeds, evaluation by evaluation; curves of one setting are of one length."""
    return [
        Point(
            points[0].round,
            *(
                statistics.fmean(getattr(point, name) for point in points)
                for name in ("figure", "client_mb", "all_mb", "compute_s")
            ),
        )
        for points in zip(*curves, strict=True)
    ]


def at_cost(points: Sequence[Point], of: str, spent: float) -> float | None:
    """The figure when so much has been spent, on the line between evaluations.

    After the last one it is the last one's: the training had ended. None before the first.
    """
    known = [(point.cost(of), point.figure) for point in points]
    if not known or spent < known[0][0]:
        return None
    for (low, before), (high, after) in pairwise(known):
        if low <= spent < high:
            return before + (after - before) * (spent - low) / (high - low)
    return known[-1][1]


def cost_to(points: Sequence[Point], of: str, figure: float, *, higher: bool) -> float | None:
    """What is spent when the line between evaluations first meets the figure; None if never."""
    sign = 1.0 if higher else -1.0
    last: tuple[float, float] | None = None
    for point in points:
        now = (point.cost(of), sign * point.figure)
        if now[1] >= sign * figure:
            if last is None or now[1] == last[1]:
                return now[0]
            share = (sign * figure - last[1]) / (now[1] - last[1])
            return last[0] + (now[0] - last[0]) * max(share, 0.0)
        last = now
    return None


def same_figure(one: Sequence[Point], other: Sequence[Point], *, higher: bool) -> float:
    """What both reach: the worse of the two last figures."""
    pick = min if higher else max
    return pick(one[-1].figure, other[-1].figure)


def saved(
    one: Sequence[Point], full: Sequence[Point], of: str, *, higher: bool
) -> tuple[float, float | None]:
    """The figure that both reach, and the share of full's cost that the method saves until there.

    The share is None where full is there at no cost.
    """
    target = same_figure(one, full, higher=higher)
    mine = cost_to(one, of, target, higher=higher)
    theirs = cost_to(full, of, target, higher=higher)
    if mine is None or not theirs:
        return target, None
    return target, 1 - mine / theirs


def _typical(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The compute seconds of one client in a round of each stage.

    The median: other work on the machine stretches single rounds.
    """
    by_stage: dict[str, list[float]] = {}
    for line in rounds:
        by_stage.setdefault(line["stage"], []).append(line["client_seconds"])
    return {stage: statistics.median(times) for stage, times in by_stage.items()}
