"""The table of a running search in a terminal, and its lines in a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.search.report.format import (
    format_metric,
    format_seconds,
    format_share,
    format_value,
    list_varied_keys,
    make_short_names,
)
from jobs.search.report.pareto import Mode, find_best
from jobs.search.trial_record import TrialRecord, TrialStatus
from jobs.train.monitor.event_text import escape_control

MAX_TRIAL_LINES = 20
"""Trials in the table, so that it fits a small terminal."""
MIN_NAME_WIDTH = 5
"""Letters of the name of a key that are shown even if its values are shorter."""
MAX_REASONS = 5
"""Reasons shown below the table."""
STATUS_STYLES: dict[TrialStatus, str] = {
    "running": "cyan",
    "done": "green",
    "stopped": "",
    "failed": "red",
    "rejected": "yellow",
    "waiting": "dim",
}
STATUS_ORDER = ("running", "done", "stopped", "failed", "rejected", "waiting")


def render_table(
    records: Sequence[TrialRecord], metric: str, mode: Mode, width: int = 80
) -> RenderableType:
    """Return the state of a search: a line per trial, and reasons of failures."""
    records = sorted(records, key=lambda record: record.number)
    best_trial, visible = find_best(records, mode), _select_visible(records, mode)
    parts: list[RenderableType] = [
        _build_trial_table(records, visible, best_trial, metric=metric, width=width)
    ]
    rest = [record for record in records if record not in visible]
    if rest:
        parts.append(
            _make_line(f"and {len(rest)} more: {_format_counts(rest)}", width, style="dim")
        )
    summary = f"{len(records)} trials: {_format_counts(records)}" if records else "no trials yet"
    parts.append(_make_line(summary, width, style="bold"))
    if best_trial is not None:
        summary = f"best: trial {best_trial.number}, {metric} {format_metric(best_trial.metric)}"
        parts.append(_make_line(summary, width, style="bold"))
    parts += [_make_line(reason, width) for reason in _format_reasons(records)]
    return Group(*parts)


def format_trial(record: TrialRecord, metric: str = "metric") -> str:
    """Return one line about a trial for a log."""
    names = make_short_names(list(record.config))
    values = " ".join(f"{names[key]}={format_value(value)}" for key, value in record.config.items())
    parts = [f"trial {record.number} {record.status}", values]
    if record.metric is not None:
        parts.append(f"{metric} {format_metric(record.metric)} at step {record.steps}")
    if record.is_finished and record.seconds:
        parts.append(format_seconds(record.seconds))
    if record.reason:
        parts.append(record.reason)
    return _join_lines(", ".join(part for part in parts if part))


def _select_visible(records: Sequence[TrialRecord], mode: Mode) -> list[TrialRecord]:
    """Return the best trial, the running ones, and the newest of the rest up to the limit."""
    best_trial = find_best(records, mode)
    first = [record for record in records if record is best_trial or record.status == "running"]
    after = [record for record in records if record not in first and record.is_finished]
    waiting = [record for record in records if record not in first and not record.is_finished]
    chosen = [*first, *reversed(after), *waiting][:MAX_TRIAL_LINES]
    return sorted(chosen, key=lambda record: record.number)


def _build_trial_table(
    records: Sequence[TrialRecord],
    visible: Sequence[TrialRecord],
    best_trial: TrialRecord | None,
    *,
    metric: str,
    width: int,
) -> Table:
    keys = list_varied_keys(records)
    table = Table(box=None, pad_edge=False, header_style="bold", width=width, padding=(0, 1))
    table.add_column("", no_wrap=True, min_width=2)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, min_width=8)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(_truncate(metric, 9), justify="right", no_wrap=True, min_width=6)
    names, *values = _align_columns(
        list(make_short_names(keys).values()),
        [[_format_config_value(record, key) for key in keys] for record in visible],
    )
    table.add_column(names, no_wrap=True, ratio=1)
    for name in ("share", "MB", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for record, line in zip(visible, values, strict=True):
        table.add_row(*_format_cells(record, line, is_best=record is best_trial))
    return table


def _format_cells(record: TrialRecord, values: str, *, is_best: bool) -> list[Text]:
    """Return the cells of a trial. MB: bytes out of a node over the whole run."""
    megabytes = "–" if record.node_bytes is None else f"{record.node_bytes / 1e6:.1f}"
    return [
        Text("★" if is_best else "", style="bold yellow"),
        Text(str(record.number)),
        Text(record.status, style=STATUS_STYLES[record.status]),
        Text(str(record.steps) if record.steps else "–"),
        Text(format_metric(record.metric), style="bold" if is_best else ""),
        Text(values),
        Text(format_share(record.trainable_share)),
        Text(megabytes),
        Text(_format_clock(record.seconds)),
    ]


def _align_columns(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of the keys and each line of values, aligned; long names are truncated."""
    widths = [
        max(min(len(name), MIN_NAME_WIDTH), *(len(line[index]) for line in lines), 0)
        for index, name in enumerate(names)
    ]
    heads = [_truncate(name, width) for name, width in zip(names, widths, strict=True)]
    return [
        " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in [heads, *lines]
    ]


def _format_config_value(record: TrialRecord, key: str) -> str:
    return _truncate(format_value(record.config[key]), 16) if key in record.config else "–"


def _format_counts(records: Sequence[TrialRecord]) -> str:
    counts: Counter[str] = Counter(record.status for record in records)
    return ", ".join(f"{counts[status]} {status}" for status in STATUS_ORDER if counts[status])


def _format_reasons(records: Sequence[TrialRecord]) -> list[str]:
    """Return the reasons of failed and rejected trials, the most frequent first."""
    causes: dict[str, list[int]] = {}
    for record in records:
        if record.status in ("failed", "rejected"):
            causes.setdefault(record.reason or "unknown reason", []).append(record.number)
    ranked = sorted(causes.items(), key=lambda cause: (-len(cause[1]), cause[1]))
    lines = [f"{_format_numbers(numbers)}: {reason}" for reason, numbers in ranked[:MAX_REASONS]]
    omitted = len(ranked) - MAX_REASONS
    return (
        [*lines, f"and {omitted} more reason{'s' if omitted > 1 else ''}"] if omitted > 0 else lines
    )


def _format_numbers(numbers: Sequence[int]) -> str:
    text = ", ".join(str(number) for number in numbers[:4])
    return text + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")


def _format_clock(seconds: float) -> str:
    """Return a time as m:ss or h:mm:ss."""
    if not seconds:
        return "–"
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest_seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest_seconds:02}" if hours else f"{minutes}:{rest_seconds:02}"


def _make_line(text: str, width: int, **style: Any) -> Text:
    return Text(_truncate(text, width), no_wrap=True, overflow="ellipsis", **style)


def _truncate(text: str, width: int) -> str:
    text = _join_lines(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _join_lines(text: str) -> str:
    return escape_control(" ".join(text.split()))
