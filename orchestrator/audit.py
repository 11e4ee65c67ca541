"""The audit: a run's plan beside its ledger, line by line, each with what it may differ by.

Pure: papers in, lines out. It knows the plan and the ledger only as the JSON that the run wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault, InputError

BASE_SHARE, MEMORY_SHARE, CLIENT_SHARE = 0.02, 0.15, 0.03
"""What gathers of the base, peak memory and a federation's bytes may differ from their plan by."""
CLIENTS = ("down", "up")
"""What travels to the clients of a federation, and back, in every round."""
BY_STAGE = ("gradients", "base", *CLIENTS)
"""Causes that are planned and judged in each stage; the others are told over the whole run."""


@dataclass(frozen=True)
class Line:
    """One figure, planned and found."""

    name: str
    unit: str
    """bytes | count | seconds"""
    planned: float | None
    found: float | None
    allowed: float | None = None
    """How far they may be apart, in the unit; None where nothing was promised."""
    promise: str = ""
    """The same in words."""

    @property
    def broken(self) -> bool:
        """Whether a promise was not kept; one that nobody recorded was not."""
        if self.allowed is None or self.planned is None:
            return False
        return self.found is None or abs(self.found - self.planned) > self.allowed

    @property
    def off(self) -> float | None:
        """How far the run was from its plan, as a share of the plan."""
        if self.planned is None or self.found is None:
            return None
        if self.planned == self.found:
            return 0.0
        return self.found / self.planned - 1 if self.planned else None


def audit(run: str, plan: Mapping[str, Any], ledger: Mapping[str, Any]) -> tuple[Line, ...]:
    """Every line. Raises InputError for papers of a run that was not predicted."""
    prediction = plan.get("prediction")
    if not prediction:
        remedy = "Only runs that were planned with a prediction can be audited."
        raise InputError([Fault("run", f"{run} has no prediction in its plan.json", remedy)])
    sharding = ledger.get("sharding", prediction["sharding"])
    way = next(way for way in prediction["ways"] if way["sharding"] == sharding)
    same = ledger.get("workers", prediction["workers"]) == prediction["workers"]
    # What clients move is the same on any number of sites; what a site holds nobody promised.
    federated = any(flow["cause"] in CLIENTS for flow in way["wire"])
    wire = _wire(way, ledger, judged=same or federated)
    memory = _memory(way, ledger, judged=not federated)
    return (*_work(prediction, ledger), *wire, memory)


def broken(lines: tuple[Line, ...]) -> list[Line]:
    """The promises that were not kept."""
    return [line for line in lines if line.broken]


def _work(prediction: Mapping[str, Any], ledger: Mapping[str, Any]) -> Iterator[Line]:
    workers = prediction["workers"]
    yield Line("workers", "count", workers, ledger.get("workers"))
    yield Line("steps", "count", prediction["steps"], ledger.get("steps"))
    yield Line("tokens", "count", prediction["tokens"], ledger.get("tokens"))
    yield Line("seconds of steps", "seconds", prediction["seconds"], ledger.get("seconds"))


def _wire(way: Mapping[str, Any], ledger: Mapping[str, Any], *, judged: bool) -> Iterator[Line]:
    """`judged` where the run had the workers that it was planned for."""
    wire: Mapping[str, Any] = ledger.get("wire") or {}
    for stage in _stage_names(way, ledger):
        steps = (ledger.get("steps_by_stage") or {}).get(stage)
        for cause in BY_STAGE:
            flow = next(
                (f for f in way["wire"] if (f["cause"], f["stage"]) == (cause, stage)), None
            )
            there = wire.get(stage, {}).get(cause)
            if flow is not None or there is not None:
                yield _flow(f"{cause}, {stage}", flow, there, steps, judged=judged)
    for cause in _others(way, wire):
        yield _whole_run(cause, way, wire)


def _flow(
    name: str,
    flow: Mapping[str, Any] | None,
    there: Mapping[str, Any] | None,
    steps: int | None,
    *,
    judged: bool,
) -> Line:
    found = there["bytes"] if there else None
    if flow is None:
        # Nothing of it was planned, so nothing of it may be.
        return Line(name, "bytes", 0, found, *((0, "none") if judged else ()))
    if flow["cause"] in CLIENTS:
        # A client that was lost has not sent what was planned; who answered has.
        times = min(flow["times"], there["calls"] if there else flow["times"])
    elif steps is None:
        times = flow["times"]
    else:
        times = math.ceil(steps * flow["per_step"] - 1e-9)
    if times is None:
        return Line(name, "bytes", None, found)
    planned = flow["sent"] * times
    found = 0 if there is None and not planned else found
    if not judged or not flow["exact"]:
        return Line(name, "bytes", planned, found)
    if flow["cause"] != "gradients":
        share = BASE_SHARE if flow["cause"] == "base" else CLIENT_SHARE
        return Line(name, "bytes", planned, found, share * planned, f"{share:.0%}")
    # A part of a byte is lost or made in each call where the workers do not divide it.
    return Line(name, "bytes", planned, found, there["calls"] if there else 0, "exact")


def _whole_run(cause: str, way: Mapping[str, Any], wire: Mapping[str, Any]) -> Line:
    """What was promised of no stage: evaluations, hand-offs, scores, and what nobody planned."""
    planned = [flow["total"] for flow in way["wire"] if flow["cause"] == cause]
    found = sum(causes[cause]["bytes"] for causes in wire.values() if cause in causes)
    known = None if None in planned else sum(planned)
    return Line(cause, "bytes", known, found)


def _memory(way: Mapping[str, Any], ledger: Mapping[str, Any], *, judged: bool) -> Line:
    peaks = [told["peak"] for told in (ledger.get("memory") or {}).values()]
    worst = max(peaks, default=None)
    if not judged:
        return Line("peak memory", "bytes", way["peak"], worst)
    allowed = MEMORY_SHARE * way["peak"]
    return Line("peak memory", "bytes", way["peak"], worst, allowed, f"{MEMORY_SHARE:.0%}")


def _stage_names(way: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[str]:
    planned = [flow["stage"] for flow in way["wire"]]
    return list(dict.fromkeys((*planned, *(ledger.get("wire") or {}))))


def _others(way: Mapping[str, Any], wire: Mapping[str, Any]) -> list[str]:
    causes = [flow["cause"] for flow in way["wire"]]
    causes += [cause for told in wire.values() for cause in told]
    return [cause for cause in dict.fromkeys(causes) if cause not in BY_STAGE]
