"""The audit as a table for people, and as values for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from orchestrator.audit import Line, broken
from orchestrator.console import duration_text, say, show_table, size_text


def show(run: str, lines: tuple[Line, ...]) -> None:
    """Prints plan beside run, and the verdict."""
    say(f"run {run}")
    rows = [
        (
            line.name,
            _figure(line.unit, line.planned, "not known"),
            _figure(line.unit, line.found, "not recorded"),
            "" if line.off is None else f"{line.off:+.2%}",
            line.promise,
            _verdict(line),
        )
        for line in lines
    ]
    headers = ("", "planned", "found", "off by", "allowed", "")
    show_table(rows, headers=headers, right=headers[1:5])
    say("")
    found = broken(lines)
    names = "; ".join(line.name for line in found)
    say(f"Not as planned: {names}." if found else "Everything that was promised is as planned.")


def described(run: str, lines: tuple[Line, ...]) -> dict[str, Any]:
    """The same as plain values."""
    told = [dataclasses.asdict(line) | {"off": line.off, "broken": line.broken} for line in lines]
    return {"run": run, "as_planned": not broken(lines), "lines": told}


def _figure(unit: str, value: float | None, nothing: str) -> str:
    if value is None:
        return nothing
    if unit == "bytes":
        return size_text(round(value))
    return duration_text(value) if unit == "seconds" else f"{value:,.0f}"


def _verdict(line: Line) -> str:
    if line.allowed is None:
        return ""
    return "BROKEN" if line.broken else "ok"
