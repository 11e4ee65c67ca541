"""The audit as a table, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.plan.audit import AuditLine, list_violations
from orchestrator.cli.console import format_duration, format_size, print_line, show_table


def show_audit(run: str, lines: tuple[AuditLine, ...]) -> None:
    """Print the planned beside the recorded values, and the verdict."""
    print_line(f"run {run}")
    rows = [
        (
            line.name,
            _format_value(line.unit, line.planned, "unknown"),
            _format_value(line.unit, line.actual, "not recorded"),
            "" if line.deviation is None else f"{line.deviation:+.2%}",
            line.tolerance_text,
            _format_verdict(line),
        )
        for line in lines
    ]
    headers = ("", "planned", "actual", "deviation", "tolerance", "")
    show_table(rows, headers=headers, right=headers[1:5])
    print_line("")
    violations = list_violations(lines)
    names = "; ".join(line.name for line in violations)
    print_line(
        f"Not as planned: {names}." if violations else "All values are within their tolerances."
    )


def dump_audit(run: str, lines: tuple[AuditLine, ...]) -> dict[str, Any]:
    """Return the audit as plain values."""
    line_values = [
        dataclasses.asdict(line) | {"deviation": line.deviation, "violated": line.violated}
        for line in lines
    ]
    return {"run": run, "as_planned": not list_violations(lines), "lines": line_values}


def _format_value(unit: str, value: float | None, missing_text: str) -> str:
    if value is None:
        return missing_text
    if unit == "bytes":
        return format_size(round(value))
    return format_duration(value) if unit == "seconds" else f"{value:,.0f}"


def _format_verdict(line: AuditLine) -> str:
    if line.tolerance is None:
        return ""
    return "EXCEEDED" if line.violated else "ok"
