"""The curves as files: one page a partition for people who point and zoom, and an SVG a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.paper.derive import AXES, Point
from tests.benchmarks.paper.plan import Part
from tests.benchmarks.paper.svg import COLOURS, line_chart

SLUGS = {"MB": "mb", **{axis: axis.replace(" Mbit/s", "mbit") for axis in AXES[1:]}}
X_TITLES = {"MB": "MB up and down, one client", **{a: f"seconds at {a}" for a in AXES[1:]}}


def write_plots(
    part: Part, partition: str, curves: Mapping[str, Sequence[Point]], folder: Path
) -> list[Path]:
    """An SVG for each axis, and a page with all of them; nothing where there is no curve."""
    spent = {name: line for name, line in curves.items() if any(p.client_mb for p in line)}
    if not spent:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    stem, made = f"{part.name}-{partition}", list[Path]()
    for axis in AXES:
        lines = {name: _line(part, points, axis) for name, points in spent.items()}
        path = folder / f"{stem}-{SLUGS[axis]}.svg"
        title = f"{part.name}, {partition}: {_figure(part)} against {X_TITLES[axis]}"
        path.write_text(line_chart(lines, title=title, x=X_TITLES[axis], y=_figure(part)))
        made.append(path)
    page = folder / f"{stem}.html"
    _page(part, partition, spent).write_html(page, include_plotlyjs=True)
    return [*made, page]


def _figure(part: Part) -> str:
    return "test accuracy" if part.metric == "accuracy" else "test perplexity"


def _line(part: Part, points: Sequence[Point], axis: str) -> list[tuple[float, float]]:
    scale = (lambda figure: figure) if part.metric == "accuracy" else math.exp
    return [(point.cost(axis), scale(point.figure)) for point in points if point.cost(axis) > 0]


def _page(part: Part, partition: str, curves: Mapping[str, Sequence[Point]]) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, vertical_spacing=0.12, horizontal_spacing=0.08)
    for place, axis in enumerate(AXES):
        row, column = place // 2 + 1, place % 2 + 1
        for number, (name, points) in enumerate(curves.items()):
            line = _line(part, points, axis)
            figure.add_scatter(
                x=[across for across, _ in line],
                y=[up for _, up in line],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                line={"color": COLOURS[number % len(COLOURS)]},
                hovertext=[f"{name}, round {point.round}" for point in points if point.cost(axis)],
                hoverinfo="text+x+y",
                row=row,
                col=column,
            )
        figure.update_xaxes(type="log", title_text=X_TITLES[axis], row=row, col=column)
        figure.update_yaxes(title_text=_figure(part), row=row, col=column)
    title = {"text": f"{part.name}, {partition}", "y": 0.99, "yanchor": "top"}
    return figure.update_layout(title=title, template="plotly_white", height=900, margin={"t": 150})
