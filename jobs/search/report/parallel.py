"""Parallel coordinates: each trial a line over one axis a key, and the metric's at the end.

Drawn as plain lines: plotly's own kind needs WebGL, which a remote or a locked-down browser lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import plotly.graph_objects as go

from jobs.search.report.figures import LOG_SPREAD, axes
from jobs.search.report.format import (
    format_metric,
    format_value,
    list_varied_keys,
    make_short_names,
)
from jobs.search.report.groups import INK, by_group, described, grouped, legend, marked
from jobs.search.report.pareto import Mode, has_metric
from jobs.search.trial_record import TrialRecord

FEW = 8
"""Values that get a place each; more are a range."""
APART = 0.05
"""Of an axis: what trials of one value are spread over, so that each line can be seen."""


@dataclass(frozen=True)
class Axis:
    """Where a value stands, from 0 to 1, and what is written beside the axis."""

    title: str
    place: Callable[[Any], float]
    ticks: tuple[tuple[float, str], ...]


def parallel(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Any:
    """The figure. The better the metric, the higher a line ends; without one it ends before."""
    keys = list_varied_keys(rows)
    names = make_short_names(keys)
    all_axes = [_axis(names[key], [row.config.get(key) for row in rows]) for key in keys]
    all_axes.append(_metric_axis(metric, [row.metric for row in rows if has_metric(row)], mode))
    figure, groups, entry = go.Figure(), grouped(rows, mode), legend()
    for row in by_group(rows, groups):
        y = [axis.place(row.config.get(key)) for axis, key in zip(all_axes, keys, strict=False)]
        off = APART * (row.number / max(1, len(rows) - 1) - 0.5)
        y = [place + off for place in y] + (
            [all_axes[-1].place(row.metric)] if has_metric(row) else []
        )
        figure.add_scatter(
            x=list(range(len(y))),
            y=y,
            mode="lines+markers",
            line=groups[row.number].line,
            marker={"size": 5},
            opacity=groups[row.number].opacity,
            hovertext=described(row, metric),
            hoverinfo="text",
            **entry(groups[row.number]),
        )
    _draw_axes(figure, all_axes)
    return figure


def _axis(title: str, values: Sequence[Any]) -> Axis:
    """A place for each value where they are few or words, else a range."""
    different = {_text(value): value for value in values}
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if numbers and len(different) > FEW:
        return _range(title, values, format_value)
    order = sorted(different.values(), key=None if numbers else _text)
    places = {_text(value): _share(at, len(order)) for at, value in enumerate(order)}
    shown = order if len(order) <= 2 * FEW else [order[0], order[-1]]
    ticks = tuple((places[_text(value)], format_value(value)) for value in shown)
    return Axis(title, lambda value: places[_text(value)], ticks)


def _metric_axis(metric: str, values: Sequence[float | None], mode: Mode) -> Axis:
    known = [value for value in values if value is not None]
    if not known:
        return Axis(metric, lambda value: 0.5, ())
    axis = _range(metric, known, format_metric, log=False)
    if mode == "max":
        return axis
    ticks = tuple((1 - place, text) for place, text in axis.ticks)
    return Axis(metric, lambda value: 1 - axis.place(value), ticks)


def _range(
    title: str, values: Sequence[Any], text: Callable[[Any], str], *, log: bool = True
) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        return Axis(title, lambda value: 0.5, ((0.5, text(low)),))
    if log and low > 0 and high >= LOG_SPREAD * low:
        span = log10(high / low)
        ticks = tuple((at, text(low * 10 ** (at * span))) for at in (0.0, 0.5, 1.0))
        return Axis(f"{title} (log)", lambda value: log10(value / low) / span, ticks)
    ticks = tuple((at, text(low + at * (high - low))) for at in (0.0, 0.5, 1.0))
    return Axis(title, lambda value: (value - low) / (high - low), ticks)


def _draw_axes(figure: Any, all_axes: Sequence[Axis]) -> None:
    axes(figure, height=440)
    for x, axis in enumerate(all_axes):
        figure.add_shape(
            type="line", x0=x, x1=x, y0=-0.06, y1=1.06, line={"color": INK}, layer="below"
        )
        for y, text in axis.ticks:
            figure.add_annotation(
                x=x, y=y, text=marked(text[:16]), showarrow=False, xanchor="left", xshift=7,
                bgcolor="rgba(0,0,0,0)", font={"size": 12},
            )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(all_axes))),
        ticktext=[marked(axis.title) for axis in all_axes],
        range=[-0.1, len(all_axes) - 0.55],
        showgrid=False,
        side="bottom",
    )
    figure.update_yaxes(visible=False, range=[-0.1, 1.1])
    figure.update_layout(margin={"t": 40, "r": 40, "b": 40, "l": 30})


def _share(at: int, count: int) -> float:
    return at / (count - 1) if count > 1 else 0.5


def _text(value: Any) -> str:
    return repr(value)
