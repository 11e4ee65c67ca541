"""Entries of the audit log for the terminal: two lines each, which fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.cli.console import print_line
from orchestrator.cli.render.run_table import format_time
from orchestrator.schemas.audit_entries import AuditEntryResponse

MAX_VALUE_CHARS = 60
INDENT = " " * 4


def show_entries(entries: Sequence[AuditEntryResponse]) -> None:
    """Print entries in the given order: when and who, then what."""
    for entry in entries:
        print_line(_format_head(entry))
        print_line(f"{INDENT}{entry.action} {entry.object_kind} {entry.object}")
        for name in _list_names(entry):
            print_line(f"{INDENT}{INDENT}{_format_change(name, entry)}")


def _format_head(entry: AuditEntryResponse) -> str:
    maker = entry.label or "the service"
    project = "" if entry.project is None else f" in {entry.project}"
    address = "" if entry.address is None else f" from {entry.address}"
    return f"{format_time(entry.at)} UTC  {maker}{project}{address}"


def _list_names(entry: AuditEntryResponse) -> list[str]:
    """List the values to show: of a creation or a deletion, those that are set."""
    names = [*(entry.before or {}), *(entry.after or {})]
    if entry.before and entry.after:
        return list(dict.fromkeys(names))
    values = {**(entry.before or {}), **(entry.after or {})}
    return [name for name, value in values.items() if value not in (None, "", [], {}, False)]


def _format_change(name: str, entry: AuditEntryResponse) -> str:
    before, after = (
        _format_value(values[name]) if values and name in values else ""
        for values in (entry.before, entry.after)
    )
    return f"{name}: {before} → {after}" if before and after else f"{name}: {before or after}"


def _format_value(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 1]}…"
