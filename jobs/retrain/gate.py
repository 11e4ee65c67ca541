"""The gate: whether a new adapter may take over. Figures in, a verdict with its reasons out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.request import HELD_OUT, OLD
from jobs.retrain.section import GateSection

Figures = Mapping[str, float | None]
"""One adapter's metric by set of rows; None or NaN where it is no number."""


@dataclass(frozen=True)
class Line:
    """One demand of the gate."""

    asked: str
    """In words."""
    rows: str
    """Which rows it was measured on."""
    found: float | None
    """What the new adapter has; None where it is no number, or was not measured."""
    limit: float | None
    """What it must not pass."""
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """What the gate says."""

    lines: tuple[Line, ...]

    @property
    def holds(self) -> bool:
        """Whether every demand is met."""
        return all(line.holds for line in self.lines)

    @property
    def why(self) -> str:
        """The demands that are not met, with their numbers; empty where it holds."""
        return "; ".join(_words(line) for line in self.lines if not line.holds)

    def plain(self) -> list[dict[str, Any]]:
        """For a journal."""
        return [asdict(line) for line in self.lines]


def judge(gate: GateSection, new: Figures, baseline: Figures | None, *, gone: str = "") -> Verdict:
    """`gone` says why the baseline's own rows can't be had, where they were asked for."""
    lines = [_finite(gate, new)]
    if gate.target is not None:
        lines.append(_line(gate, f"{gate.metric} of the target", HELD_OUT, new, gate.target))
    if baseline is not None and gate.baseline == "current":
        lines += _compared(gate, new, baseline, gone)
    return Verdict(tuple(lines))


def _finite(gate: GateSection, new: Figures) -> Line:
    found = _number(new.get(HELD_OUT))
    return Line(f"{gate.metric} is a number", HELD_OUT, found, None, found is not None)


def _compared(gate: GateSection, new: Figures, baseline: Figures, gone: str) -> Iterator[Line]:
    sign = 1 if gate.falling else -1
    there = _number(baseline.get(HELD_OUT))
    limit = None if there is None else there - sign * gate.better_by
    asked = f"better than current by {gate.better_by:g}" if gate.better_by else "as good as current"
    yield _line(gate, asked, HELD_OUT, new, limit)
    if gate.tolerance is None:
        return
    if gone:
        yield Line(f"current's own rows: {gone}", OLD, None, None, gate.gone == "ignore")
        return
    there = _number(baseline.get(OLD))
    limit = None if there is None else there + sign * gate.tolerance * abs(there)
    yield _line(gate, f"at most {gate.tolerance:.1%} worse than current", OLD, new, limit)


def _line(gate: GateSection, asked: str, rows: str, new: Figures, limit: float | None) -> Line:
    found = _number(new.get(rows))
    if found is None or limit is None:
        return Line(asked, rows, found, limit, False)
    return Line(asked, rows, found, limit, found <= limit if gate.falling else found >= limit)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _words(line: Line) -> str:
    found = "no number" if line.found is None else f"{line.found:.4f}"
    limit = "" if line.limit is None else f", the limit is {line.limit:.4f}"
    return f"{line.asked} ({line.rows} rows): {found}{limit}"
