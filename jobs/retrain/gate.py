"""Decide from metrics whether a new adapter may be promoted, and report why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.spec.sections.retrain import GateSection
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL

MetricByRows = Mapping[str, float | None]
"""One adapter's metric by set of rows; None or NaN if it is not a number."""


@dataclass(frozen=True)
class GateCheck:
    """One requirement of the gate and the value it was checked against."""

    requirement: str
    """For people."""
    rows: str
    """The set of rows that it was measured on."""
    value: float | None
    """The new adapter's metric; None if it is not a number or was not measured."""
    limit: float | None
    """The bound that the value must meet."""
    passed: bool


@dataclass(frozen=True)
class GateVerdict:
    """All checks of a gate on one adapter."""

    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Return True if every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Return the failed checks with their numbers; empty if all passed."""
        return "; ".join(_format_check(check) for check in self.checks if not check.passed)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the checks as plain values, for the event log."""
        return [asdict(check) for check in self.checks]


def apply_gate(
    gate: GateSection, new: MetricByRows, baseline: MetricByRows | None, *, missing_reason: str = ""
) -> GateVerdict:
    """Check the new adapter's metrics against the gate.

    `missing_reason` says why the rows that the baseline was evaluated on are not available.
    """
    checks = [_check_finite(gate, new)]
    if gate.target is not None:
        checks.append(_check_limit(gate, f"{gate.metric} target", HELD_OUT, new, gate.target))
    if baseline is not None and gate.baseline == "current":
        checks += _compare(gate, new, baseline, missing_reason)
    return GateVerdict(tuple(checks))


def _check_finite(gate: GateSection, new: MetricByRows) -> GateCheck:
    value = _get_finite(new.get(HELD_OUT))
    return GateCheck(f"{gate.metric} is a number", HELD_OUT, value, None, value is not None)


def _compare(
    gate: GateSection, new: MetricByRows, baseline: MetricByRows, missing_reason: str
) -> Iterator[GateCheck]:
    sign = 1 if gate.lower_is_better else -1
    current_value = _get_finite(baseline.get(HELD_OUT))
    limit = None if current_value is None else current_value - sign * gate.better_by
    requirement = "at least as good as current"
    if gate.better_by:
        requirement = f"better than current by {gate.better_by:g}"
    yield _check_limit(gate, requirement, HELD_OUT, new, limit)
    if gate.tolerance is None:
        return
    if missing_reason:
        requirement = f"comparison on the rows that current was evaluated on: {missing_reason}"
        yield GateCheck(requirement, PREVIOUS_EVAL, None, None, gate.missing_rows == "ignore")
        return
    current_value = _get_finite(baseline.get(PREVIOUS_EVAL))
    limit = None
    if current_value is not None:
        limit = current_value + sign * gate.tolerance * abs(current_value)
    requirement = f"at most {gate.tolerance:.1%} worse than current"
    yield _check_limit(gate, requirement, PREVIOUS_EVAL, new, limit)


def _check_limit(
    gate: GateSection, requirement: str, rows: str, new: MetricByRows, limit: float | None
) -> GateCheck:
    value = _get_finite(new.get(rows))
    if value is None or limit is None:
        return GateCheck(requirement, rows, value, limit, False)
    passed = value <= limit if gate.lower_is_better else value >= limit
    return GateCheck(requirement, rows, value, limit, passed)


def _get_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _format_check(check: GateCheck) -> str:
    value = "not a number" if check.value is None else f"{check.value:.4f}"
    limit = "" if check.limit is None else f" (limit {check.limit:.4f})"
    return f"{check.requirement}, {check.rows} rows: {value}{limit}"
