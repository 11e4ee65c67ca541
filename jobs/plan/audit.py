"""The audit: compare a run's plan with its ledger, line by line, each with its tolerance.

Pure functions on the JSON of the plan and the ledger, as the run wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault, InputError

BASE_SHARE, MEMORY_SHARE, CLIENT_SHARE = 0.02, 0.15, 0.03
"""Tolerances, as shares of the plan: gathers of the base, peak memory, a federation's bytes."""
CLIENTS = ("down", "up")
"""Traffic to the clients of a federation, and back, in every round."""
STAGE_CAUSES = ("gradients", "base", *CLIENTS)
"""Causes of traffic that are planned per stage; the others are compared over the whole run."""


@dataclass(frozen=True)
class AuditLine:
    """A planned value and the recorded one."""

    name: str
    unit: str
    """bytes | count | seconds"""
    planned: float | None
    actual: float | None
    tolerance: float | None = None
    """Largest allowed difference, in the unit; None if the plan does not bind."""
    tolerance_text: str = ""
    """The tolerance as text."""

    @property
    def violated(self) -> bool:
        """Return True if the difference exceeds the tolerance, or the value was not recorded."""
        if self.tolerance is None or self.planned is None:
            return False
        return self.actual is None or abs(self.actual - self.planned) > self.tolerance

    @property
    def deviation(self) -> float | None:
        """Return the difference as a share of the plan, None if it is undefined."""
        if self.planned is None or self.actual is None:
            return None
        if self.planned == self.actual:
            return 0.0
        return self.actual / self.planned - 1 if self.planned else None


def compare_with_plan(
    run: str, plan: Mapping[str, Any], ledger: Mapping[str, Any]
) -> tuple[AuditLine, ...]:
    """Return every line of the audit. Raise InputError if the plan has no estimate."""
    estimate = plan.get("estimate")
    if not estimate:
        remedy = "Only runs that were planned with an estimate can be audited."
        raise InputError([Fault("run", f"{run} has no estimate in its plan.json", remedy)])
    sharding = ledger.get("sharding", estimate["sharding"])
    option = next(option for option in estimate["options"] if option["sharding"] == sharding)
    same_workers = ledger.get("workers", estimate["workers"]) == estimate["workers"]
    # The clients' traffic is the same on any number of sites; a site's memory is not planned.
    federated = any(flow["cause"] in CLIENTS for flow in option["wire"])
    traffic_lines = _compare_traffic(option, ledger, is_binding=same_workers or federated)
    memory_line = _compare_memory(option, ledger, is_binding=not federated)
    return (*_compare_work(estimate, ledger), *traffic_lines, memory_line)


def list_violations(lines: tuple[AuditLine, ...]) -> list[AuditLine]:
    """Return the lines that exceed their tolerance."""
    return [line for line in lines if line.violated]


def _compare_work(estimate: Mapping[str, Any], ledger: Mapping[str, Any]) -> Iterator[AuditLine]:
    workers = estimate["workers"]
    yield AuditLine("workers", "count", workers, ledger.get("workers"))
    yield AuditLine("steps", "count", estimate["steps"], ledger.get("steps"))
    yield AuditLine("tokens", "count", estimate["tokens"], ledger.get("tokens"))
    yield AuditLine("seconds of steps", "seconds", estimate["seconds"], ledger.get("seconds"))


def _compare_traffic(
    option: Mapping[str, Any], ledger: Mapping[str, Any], *, is_binding: bool
) -> Iterator[AuditLine]:
    """Compare bytes by cause. `is_binding`: the run had the planned number of workers."""
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
        # It was not planned, so it must not occur.
        return AuditLine(name, "bytes", 0, actual, *((0, "none") if is_binding else ()))
    if flow["cause"] in CLIENTS:
        # A client that dropped out sent nothing; each one that answered sent the planned bytes.
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
    # Each call may round by less than a byte if the workers do not divide the size.
    return AuditLine(name, "bytes", planned, actual, recorded["calls"] if recorded else 0, "exact")


def _compare_run_total(
    cause: str, option: Mapping[str, Any], recorded_traffic: Mapping[str, Any]
) -> AuditLine:
    """Compare traffic without a plan per stage: evaluations, hand-offs, scores, and others."""
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
