"""The table of every trial in a search's report, as plain HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jobs.search.report.format import (
    format_bytes,
    format_metric,
    format_seconds,
    format_share,
    format_value,
    list_keys,
)
from jobs.search.report.pareto import Mode, find_front
from jobs.search.trial_record import TrialRecord

COLUMNS = ("trainable", "bytes out of a machine", "adapter", "memory",
           "steps", "tokens", "time", "shared", "reason")  # fmt: skip


def render_trial_table(records: Sequence[TrialRecord], metric: str, mode: Mode) -> str:
    """Return a table with one row per trial; "front" marks the Pareto front over all costs."""
    keys, front = list_keys(records), set(find_front(records, mode))
    head = _render_cells("th", ["trial", "status", metric, *keys, *COLUMNS])
    rows = "".join(
        f'<tr id="trial-{record.number}">{_render_cells("td", cells)}</tr>'
        for record in records
        for cells in [_list_cells(record, keys, front)]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="table">{table}</div>'


def _list_cells(record: TrialRecord, keys: Sequence[str], front: set[int]) -> list[str]:
    return [
        f"{record.number}{' (front)' if record.number in front else ''}",
        record.status,
        format_metric(record.metric),
        *(format_value(record.config[key]) if key in record.config else "–" for key in keys),
        format_share(record.trainable_share),
        format_bytes(record.node_bytes),
        format_bytes(record.adapter_bytes),
        format_bytes(record.memory_bytes),
        f"{record.steps:,}",
        f"{record.tokens:,}",
        format_seconds(record.seconds),
        ", ".join(record.shared),
        record.reason,
    ]


def _render_cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
