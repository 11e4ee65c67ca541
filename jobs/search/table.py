"""The terminal's table of a search, drawn anew as its trials go on, and its lines for a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.narrate import plain
from jobs.search.pareto import Mode, best
from jobs.search.rows import Row, Status
from jobs.search.wording import (
    metric_text,
    seconds_text,
    share_text,
    short_names,
    value_text,
    varied_keys,
)

MOST = 20
"""Lines of trials, so that the table fits a small terminal."""
NAME = 5
"""Letters of a key's name that are worth more room than its values take."""
REASONS = 5
"""Reasons shown below the table."""
STYLES: dict[Status, str] = {
    "running": "cyan",
    "done": "green",
    "stopped": "",
    "failed": "red",
    "rejected": "yellow",
    "waiting": "dim",
}
TOLD = ("running", "done", "stopped", "failed", "rejected", "waiting")


def live(rows: Sequence[Row], metric: str, mode: Mode, width: int = 80) -> RenderableType:
    """How the search stands: a line a trial, the best one marked, and why others failed."""
    rows = sorted(rows, key=lambda row: row.number)
    top, shown = best(rows, mode), _shown(rows, mode)
    parts: list[RenderableType] = [_trials(rows, shown, top, metric=metric, width=width)]
    rest = [row for row in rows if row not in shown]
    if rest:
        parts.append(_line(f"and {len(rest)} more: {_counts(rest)}", width, style="dim"))
    told = f"{len(rows)} trials: {_counts(rows)}" if rows else "no trials yet"
    parts.append(_line(told, width, style="bold"))
    if top is not None:
        told = f"best: trial {top.number}, {metric} {metric_text(top.metric)}"
        parts.append(_line(told, width, style="bold"))
    parts += [_line(reason, width) for reason in _reasons(rows)]
    return Group(*parts)


def line_of(row: Row, metric: str = "metric") -> str:
    """One line about a trial, for a log that is no terminal."""
    names = short_names(list(row.config))
    values = " ".join(f"{names[key]}={value_text(value)}" for key, value in row.config.items())
    parts = [f"trial {row.number} {row.status}", values]
    if row.metric is not None:
        parts.append(f"{metric} {metric_text(row.metric)} at step {row.steps}")
    if row.ended and row.seconds:
        parts.append(seconds_text(row.seconds))
    if row.reason:
        parts.append(row.reason)
    return _one_line(", ".join(part for part in parts if part))


def _shown(rows: Sequence[Row], mode: Mode) -> list[Row]:
    """The best trial, those at work, and the newest of the rest, as many as there is room for."""
    top = best(rows, mode)
    first = [row for row in rows if row is top or row.status == "running"]
    after = [row for row in rows if row not in first and row.ended]
    waiting = [row for row in rows if row not in first and not row.ended]
    chosen = [*first, *reversed(after), *waiting][:MOST]
    return sorted(chosen, key=lambda row: row.number)


def _trials(
    rows: Sequence[Row], shown: Sequence[Row], top: Row | None, *, metric: str, width: int
) -> Table:
    keys = varied_keys(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", width=width, padding=(0, 1))
    table.add_column("", no_wrap=True, min_width=2)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, min_width=8)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(_cut(metric, 9), justify="right", no_wrap=True, min_width=6)
    names, *values = _aligned(
        list(short_names(keys).values()), [[_value(row, key) for key in keys] for row in shown]
    )
    table.add_column(names, no_wrap=True, ratio=1)
    for name in ("share", "MB", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, told in zip(shown, values, strict=True):
        table.add_row(*_cells(row, told, is_best=row is top))
    return table


def _cells(row: Row, values: str, *, is_best: bool) -> list[Text]:
    """MB: what leaves a node over the whole run."""
    megabytes = "–" if row.node_bytes is None else f"{row.node_bytes / 1e6:.1f}"
    return [
        Text("★" if is_best else "", style="bold yellow"),
        Text(str(row.number)),
        Text(row.status, style=STYLES[row.status]),
        Text(str(row.steps) if row.steps else "–"),
        Text(metric_text(row.metric), style="bold" if is_best else ""),
        Text(values),
        Text(share_text(row.trainable_share)),
        Text(megabytes),
        Text(_clock(row.seconds)),
    ]


def _aligned(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The keys' names and, under them, each line's values; a long name is cut to its values."""
    widths = [
        max(min(len(name), NAME), *(len(line[at]) for line in lines), 0)
        for at, name in enumerate(names)
    ]
    heads = [_cut(name, width) for name, width in zip(names, widths, strict=True)]
    return [
        " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in [heads, *lines]
    ]


def _value(row: Row, key: str) -> str:
    return _cut(value_text(row.config[key]), 16) if key in row.config else "–"


def _counts(rows: Sequence[Row]) -> str:
    counts: Counter[str] = Counter(row.status for row in rows)
    return ", ".join(f"{counts[status]} {status}" for status in TOLD if counts[status])


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why trials failed or were rejected, the commonest first; trials of one reason together."""
    causes: dict[str, list[int]] = {}
    for row in rows:
        if row.status in ("failed", "rejected"):
            causes.setdefault(row.reason or "no reason given", []).append(row.number)
    common = sorted(causes.items(), key=lambda cause: (-len(cause[1]), cause[1]))
    lines = [f"{_numbers(numbers)}: {reason}" for reason, numbers in common[:REASONS]]
    more = len(common) - REASONS
    return [*lines, f"and {more} more reason{'s' if more > 1 else ''}"] if more > 0 else lines


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:4])
    return shown + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")


def _clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    if not seconds:
        return "–"
    hours, rest = divmod(round(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def _line(text: str, width: int, **style: Any) -> Text:
    return Text(_cut(text, width), no_wrap=True, overflow="ellipsis", **style)


def _cut(text: str, most: int) -> str:
    text = _one_line(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))
