"""The report's figures: the curves, quality against cost, and what mattered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.search.report.groups import (
    BEST,
    GOOD,
    INK,
    OTHER,
    Group,
    by_group,
    described,
    grouped,
    legend,
    marked,
)
from jobs.search.report.pareto import COSTS, Mode, find_front, has_metric, select_comparable
from jobs.search.trial_record import TrialRecord

LABELLED = 30
"""Curves that still have room for their numbers."""
LOG_SPREAD = 8.0
"""Costs further apart than this crowd at one end of a linear axis."""
COST_TITLES = {
    "trainable_share": ("trainable share", ".3~p"),
    "node_bytes": ("bytes out of a node", "~s"),
    "adapter_bytes": ("adapter's bytes", "~s"),
}


def curves(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Any:
    """The metric of every trial at each of its evaluations."""
    groups, drawn = grouped(rows, mode), legend()
    figure = go.Figure()
    for row in by_group([row for row in rows if row.curve], groups):
        points = [(step, value) for step, value in row.curve if isfinite(value)]
        labels = [""] * (len(points) - 1) + [f" {row.number}"]
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            mode="lines+markers+text" if len(rows) <= LABELLED else "lines+markers",
            text=labels,
            textposition="middle right",
            line=groups[row.number].line,
            marker={"size": 4},
            opacity=groups[row.number].opacity,
            hovertext=described(row, metric),
            hoverinfo="text+x+y",
            cliponaxis=False,
            **drawn(groups[row.number]),
        )
    axes(figure, height=420)
    return figure.update_layout(
        xaxis_title="step", yaxis_title=marked(metric), margin={"t": 20, "r": 40, "b": 50, "l": 70}
    )


def tradeoffs(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Any:
    """The metric against each cost; trials on the Pareto front are filled."""
    figure = make_subplots(rows=1, cols=len(COSTS), shared_yaxes=True, horizontal_spacing=0.04)
    for place, cost in enumerate(COSTS, start=1):
        known = [row for row in select_comparable(rows) if getattr(row, cost) is not None]
        for name, look, numbers in _standings(rows, mode):
            points = [row for row in known if row.number in numbers]
            figure.add_scatter(
                x=[getattr(row, cost) for row in points],
                y=[row.metric for row in points],
                mode="markers",
                marker=look,
                hovertext=[described(row, metric) for row in points],
                hoverinfo="text",
                name=name,
                legendgroup=name,
                showlegend=place == 1 and bool(points),
                row=1,
                col=place,
            )
        _cost_axis(figure, place, cost, [getattr(row, cost) for row in known])
    axes(figure, height=400)
    figure.update_yaxes(title_text=marked(metric), row=1, col=1)
    return figure


def importances(shares: Mapping[str, float]) -> Any:
    """A bar for each key's share."""
    keys = list(shares)[::-1]
    figure = go.Figure()
    figure.add_bar(
        x=[shares[key] for key in keys],
        y=[marked(key) for key in keys],
        orientation="h",
        marker={"color": GOOD.colour},
        text=[f"{shares[key]:.0%}" for key in keys],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    axes(figure, height=110 + 36 * len(keys))
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    return figure.update_yaxes(type="category", automargin=True, ticklabelstandoff=8)


def axes(figure: Any, *, height: int) -> None:
    """What all figures share: the page's ground behind them, and a legend above."""
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 13, "color": INK},
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": INK, "font": {"color": "#1c1e21"}},
        hovermode="closest",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 40, "r": 30, "b": 50, "l": 70},
    )
    quiet = {"gridcolor": "rgba(125,133,144,0.25)", "zeroline": False}
    figure.update_xaxes(**quiet)
    figure.update_yaxes(**quiet)


def drawable(rows: Sequence[TrialRecord]) -> bool:
    """Whether any trial has a result to draw."""
    return any(has_metric(row) for row in select_comparable(rows))


def _standings(
    rows: Sequence[TrialRecord], mode: Mode
) -> list[tuple[str, dict[str, Any], Collection[int]]]:
    """Names, markers and members; the best trial is drawn over its own place on the front."""
    chosen, every = set(find_front(rows, mode)), {row.number for row in rows}
    first = {number for number, group in grouped(rows, mode).items() if group is BEST}
    return [
        ("not on the front", _marker("circle-open", OTHER), every - chosen),
        ("Pareto front", _marker("diamond", GOOD), chosen),
        ("best trial", _marker("star", BEST, size=13), first),
    ]


def _marker(symbol: str, group: Group, *, size: int = 9) -> dict[str, Any]:
    return {"symbol": symbol, "color": group.colour, "size": size}


def _cost_axis(figure: Any, place: int, cost: str, values: Sequence[float]) -> None:
    title, form = COST_TITLES[cost]
    known = [value for value in values if value > 0]
    wide = len(known) == len(values) > 0 and max(known) >= LOG_SPREAD * min(known)
    figure.update_xaxes(
        title_text=title + (", log scale" if wide else ""),
        type="log" if wide else "linear",
        dtick="D2" if wide else None,
        tickformat=form,
        nticks=6,
        row=1,
        col=place,
    )
