"""The gate: whether a new adapter may take over. Figures in, a verdict with its reasons out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.spec.sections.retrain import GateSection
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL

MetricByRows = Mapping[str, float | None]
"""One adapter's metric by set of rows; None or NaN where it is no number."""


@dataclass(frozen=True)
class GateCheck:
    """One demand of the gate."""

    requirement: str
    """In words."""
    rows: str
    """Which rows it was measured on."""
    value: float | None
    """What the new adapter has; None where it is no number, or was not measured."""
    limit: float | None
    """What it must not pass."""
    passed: bool


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says."""

    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every demand is met."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The demands that are not met, with their numbers; empty where it holds."""
        return "; ".join(_format_check(check) for check in self.checks if not check.passed)

    def to_json(self) -> list[dict[str, Any]]:
        """For a journal."""
        return [asdict(check) for check in self.checks]


def apply_gate(
    gate: GateSection, new: MetricByRows, baseline: MetricByRows | None, *, missing_reason: str = ""
) -> GateVerdict:
    """`gone` says why the baseline's own rows can't be had, where they were asked for."""
    checks = [_check_finite(gate, new)]
    if gate.target is not None:
        checks.append(
            _check_limit(gate, f"{gate.metric} of the target", HELD_OUT, new, gate.target)
        )
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
    requirement = (
        f"better than current by {gate.better_by:g}" if gate.better_by else "as good as current"
    )
    yield _check_limit(gate, requirement, HELD_OUT, new, limit)
    if gate.tolerance is None:
        return
    if missing_reason:
        yield GateCheck(
            f"current's own rows: {missing_reason}",
            PREVIOUS_EVAL,
            None,
            None,
            gate.missing_rows == "ignore",
        )
        return
    current_value = _get_finite(baseline.get(PREVIOUS_EVAL))
    limit = (
        None
        if current_value is None
        else current_value + sign * gate.tolerance * abs(current_value)
    )
    yield _check_limit(
        gate, f"at most {gate.tolerance:.1%} worse than current", PREVIOUS_EVAL, new, limit
    )


def _check_limit(
    gate: GateSection, requirement: str, rows: str, new: MetricByRows, limit: float | None
) -> GateCheck:
    value = _get_finite(new.get(rows))
    if value is None or limit is None:
        return GateCheck(requirement, rows, value, limit, False)
    return GateCheck(
        requirement, rows, value, limit, value <= limit if gate.lower_is_better else value >= limit
    )


def _get_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _format_check(check: GateCheck) -> str:
    value = "no number" if check.value is None else f"{check.value:.4f}"
    limit = "" if check.limit is None else f", the limit is {check.limit:.4f}"
    return f"{check.requirement} ({check.rows} rows): {value}{limit}"
