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
STAGE_CAUSES = ("gradients", "base", *CLIENTS)
"""Causes that are planned and judged in each stage; the others are told over the whole run."""


@dataclass(frozen=True)
class AuditLine:
    """One figure, planned and found."""

    name: str
    unit: str
    """bytes | count | seconds"""
    planned: float | None
    actual: float | None
    tolerance: float | None = None
    """How far they may be apart, in the unit; None where nothing was promised."""
    tolerance_text: str = ""
    """The same in words."""

    @property
    def violated(self) -> bool:
        """Whether a promise was not kept; one that nobody recorded was not."""
        if self.tolerance is None or self.planned is None:
            return False
        return self.actual is None or abs(self.actual - self.planned) > self.tolerance

    @property
    def deviation(self) -> float | None:
        """How far the run was from its plan, as a share of the plan."""
        if self.planned is None or self.actual is None:
            return None
        if self.planned == self.actual:
            return 0.0
        return self.actual / self.planned - 1 if self.planned else None


def compare_with_plan(
    run: str, plan: Mapping[str, Any], ledger: Mapping[str, Any]
) -> tuple[AuditLine, ...]:
    """Every line. Raises InputError for papers of a run that was not predicted."""
    prediction = plan.get("estimate")
    if not prediction:
        remedy = "Only runs that were planned with a prediction can be audited."
        raise InputError([Fault("run", f"{run} has no prediction in its plan.json", remedy)])
    sharding = ledger.get("sharding", prediction["sharding"])
    option = next(option for option in prediction["options"] if option["sharding"] == sharding)
    same_workers = ledger.get("workers", prediction["workers"]) == prediction["workers"]
    # What clients move is the same on any number of sites; what a site holds nobody promised.
    federated = any(flow["cause"] in CLIENTS for flow in option["wire"])
    traffic_lines = _compare_traffic(option, ledger, is_binding=same_workers or federated)
    memory_line = _compare_memory(option, ledger, is_binding=not federated)
    return (*_compare_work(prediction, ledger), *traffic_lines, memory_line)


def list_violations(lines: tuple[AuditLine, ...]) -> list[AuditLine]:
    """The promises that were not kept."""
    return [line for line in lines if line.violated]


def _compare_work(prediction: Mapping[str, Any], ledger: Mapping[str, Any]) -> Iterator[AuditLine]:
    workers = prediction["workers"]
    yield AuditLine("workers", "count", workers, ledger.get("workers"))
    yield AuditLine("steps", "count", prediction["steps"], ledger.get("steps"))
    yield AuditLine("tokens", "count", prediction["tokens"], ledger.get("tokens"))
    yield AuditLine("seconds of steps", "seconds", prediction["seconds"], ledger.get("seconds"))


def _compare_traffic(
    option: Mapping[str, Any], ledger: Mapping[str, Any], *, is_binding: bool
) -> Iterator[AuditLine]:
    """`judged` where the run had the workers that it was planned for."""
    recorded_traffic: Mapping[str, Any] = ledger.get("wire") or {}
    for stage in _list_stages(option, ledger):
        steps = (ledger.get("steps_by_stage") or {}).get(stage)
        for cause in STAGE_CAUSES:
            flow = next(
                (
                    candidate
                    for candidate in option["wire"]
                    if (candidate["cause"], candidate["stage"]) == (cause, stage)
                ),
                None,
            )
            recorded = recorded_traffic.get(stage, {}).get(cause)
            if flow is not None or recorded is not None:
                yield _compare_flow(
                    f"{cause}, {stage}", flow, recorded, steps, is_binding=is_binding
                )
    for cause in _list_other_causes(option, recorded_traffic):
        yield _compare_run_total(cause, option, recorded_traffic)


def _compare_flow(
    name: str,
    flow: Mapping[str, Any] | None,
    recorded: Mapping[str, Any] | None,
    steps: int | None,
    *,
    is_binding: bool,
) -> AuditLine:
    actual = recorded["bytes"] if recorded else None
    if flow is None:
        # Nothing of it was planned, so nothing of it may be.
        return AuditLine(name, "bytes", 0, actual, *((0, "none") if is_binding else ()))
    if flow["cause"] in CLIENTS:
        # A client that was lost has not sent what was planned; who answered has.
        times = min(flow["times"], recorded["calls"] if recorded else flow["times"])
    elif steps is None:
        times = flow["times"]
    else:
        times = math.ceil(steps * flow["per_step"] - 1e-9)
    if times is None:
        return AuditLine(name, "bytes", None, actual)
    planned = flow["sent"] * times
    actual = 0 if recorded is None and not planned else actual
    if not is_binding or not flow["exact"]:
        return AuditLine(name, "bytes", planned, actual)
    if flow["cause"] != "gradients":
        share = BASE_SHARE if flow["cause"] == "base" else CLIENT_SHARE
        return AuditLine(name, "bytes", planned, actual, share * planned, f"{share:.0%}")
    # A part of a byte is lost or made in each call where the workers do not divide it.
    return AuditLine(name, "bytes", planned, actual, recorded["calls"] if recorded else 0, "exact")


def _compare_run_total(
    cause: str, option: Mapping[str, Any], recorded_traffic: Mapping[str, Any]
) -> AuditLine:
    """What was promised of no stage: evaluations, hand-offs, scores, and what nobody planned."""
    planned = [flow["total"] for flow in option["wire"] if flow["cause"] == cause]
    actual = sum(causes[cause]["bytes"] for causes in recorded_traffic.values() if cause in causes)
    planned_total = None if None in planned else sum(planned)
    return AuditLine(cause, "bytes", planned_total, actual)


def _compare_memory(
    option: Mapping[str, Any], ledger: Mapping[str, Any], *, is_binding: bool
) -> AuditLine:
    peaks = [usage["peak"] for usage in (ledger.get("memory") or {}).values()]
    highest_peak = max(peaks, default=None)
    if not is_binding:
        return AuditLine("peak memory", "bytes", option["peak"], highest_peak)
    tolerance = MEMORY_SHARE * option["peak"]
    return AuditLine(
        "peak memory", "bytes", option["peak"], highest_peak, tolerance, f"{MEMORY_SHARE:.0%}"
    )


def _list_stages(option: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[str]:
    planned = [flow["stage"] for flow in option["wire"]]
    return list(dict.fromkeys((*planned, *(ledger.get("wire") or {}))))


def _list_other_causes(option: Mapping[str, Any], recorded_traffic: Mapping[str, Any]) -> list[str]:
    causes = [flow["cause"] for flow in option["wire"]]
    causes += [cause for traffic in recorded_traffic.values() for cause in traffic]
    return [cause for cause in dict.fromkeys(causes) if cause not in STAGE_CAUSES]
