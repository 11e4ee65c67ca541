"""How the report tells trials apart in every figure: by how well they did, not by a colour each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from typing import Any

from jobs.search.report.format import format_metric, format_value, make_short_names
from jobs.search.report.pareto import Mode, find_best, has_metric, select_comparable
from jobs.search.trial_record import TrialRecord

INK = "#7d8590"
"""Readable on white and on black, for what the page's own colours do not reach."""


@dataclass(frozen=True)
class Group:
    """Trials that look alike: on white and on black, and without colours by width and dashes."""

    name: str
    colour: str
    width: float
    dash: str = "solid"
    opacity: float = 1.0

    @property
    def line(self) -> dict[str, object]:
        """As plotly takes it."""
        return {"color": self.colour, "width": self.width, "dash": self.dash}


BEST = Group("best trial", "#e8590c", 3.5)
GOOD = Group("best quarter", "#228be6", 2)
OTHER = Group("others", INK, 1.25, opacity=0.75)
UNENDED = Group("failed or not ended", "#d6568f", 1.25, dash="dot", opacity=0.9)
GROUPS = (UNENDED, OTHER, GOOD, BEST)
"""In the order of drawing: what matters most lies on top."""


def grouped(rows: Sequence[TrialRecord], mode: Mode) -> dict[int, Group]:
    """The group of each trial, by its number."""
    ended = sorted(
        select_comparable(rows), key=lambda row: row.metric or 0.0, reverse=mode == "max"
    )
    quarter = {row.number for row in ended[: ceil(len(ended) / 4)]}
    top = find_best(rows, mode)
    known = {row.number: GOOD if row.number in quarter else OTHER for row in ended}
    if top is not None:
        known[top.number] = BEST
    return {row.number: known.get(row.number, UNENDED) for row in rows}


def by_group(rows: Iterable[TrialRecord], groups: Mapping[int, Group]) -> list[TrialRecord]:
    """The trials in the order of drawing."""
    return sorted(rows, key=lambda row: GROUPS.index(groups[row.number]))


def legend() -> Callable[[Group], dict[str, Any]]:
    """What plotly's traces say for the legend to have one entry a group, at its first trial."""
    seen = set[str]()

    def entry(group: Group) -> dict[str, Any]:
        first = group.name not in seen
        seen.add(group.name)
        return {"name": group.name, "legendgroup": group.name, "showlegend": first}

    return entry


def described(row: TrialRecord, metric: str) -> str:
    """What hovering over a trial tells, as the markup that plotly reads."""
    names = make_short_names(list(row.config))
    lines = [f"{names[key]} = {format_value(value)}" for key, value in row.config.items()]
    told = row.status if row.metric is None else f"{row.status}, {metric} {_metric(row)}"
    return "<br>".join(marked(line) for line in [f"trial {row.number}: {told}", *lines])


def marked(text: str) -> str:
    """Any text as plotly's markup, with nothing in it that plotly would obey."""
    return escape(text if len(text) <= 80 else text[:79] + "…", quote=False)


def _metric(row: TrialRecord) -> str:
    return format_metric(row.metric) if has_metric(row) else "not a number"
