"""The report of a search: one HTML file that shows every trial, and needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.search.report import importance
from jobs.search.report.figures import LABELLED, curves, drawable, importances, tradeoffs
from jobs.search.report.page import Section, page
from jobs.search.report.parallel import parallel
from jobs.search.report.pareto import Mode, find_front, has_metric
from jobs.search.report.trial_table import headline, trials
from jobs.search.trial_record import TrialRecord

MIN_FOR_FINDING = 40
"""Trials below which the importance of keys is a hint: it found the right one in 3 of 4 searches
of 12 made-up trials, and in 9 of 10 of 40."""


def render_report(
    rows: Sequence[TrialRecord],
    *,
    name: str,
    metric: str,
    mode: Mode,
    budget: Mapping[str, float] | None = None,
) -> str:
    """The file's text. `budget`: the search's limits by name (`trials`, `tokens`, …)."""
    rows = sorted(rows, key=lambda row: row.number)
    sections = [
        _curves(rows, metric, mode),
        _tradeoffs(rows, metric, mode),
        _parallel(rows, metric, mode),
        _importance(rows, mode),
    ]
    return page(
        f"Search {name}",
        headline(rows, metric, mode, budget=budget or {}),
        sections,
        trials(rows, metric, mode),
    )


def _curves(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Section:
    title = f"{metric} over the steps"
    if not any(row.curve for row in rows):
        return Section("curves", title, "No trial has been evaluated.")
    numbered = ", with its number at the end" if len(rows) <= LABELLED else ""
    told = f"One line a trial{numbered}. Point at it for its values."
    return Section("curves", title, told, curves(rows, metric, mode))


def _tradeoffs(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Section:
    title = "Quality against cost"
    if not drawable(rows):
        return Section("tradeoffs", title, "No trial came to a result.")
    chosen = find_front(rows, mode)
    numbers = ", ".join(str(number) for number in chosen)
    told = (
        f"On the Pareto front over {metric}, trainable share, bytes out of a node and the adapter's"
        f" size: {'trials ' + numbers if chosen else 'none, as costs are not known'}. Such a trial"
        " can lie behind another one in a single picture."
    )
    return Section("tradeoffs", title, told, tradeoffs(rows, metric, mode))


def _parallel(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> Section:
    title = "What was tried, and what came of it"
    if not any(row.config for row in rows):
        return Section("parallel", title, "No trial has searched values.")
    told = (
        f"One line a trial over the searched keys, to its {metric} at the right: the higher, the"
        " better. Trials without a result end before it; those of one value are drawn side by side."
    )
    return Section("parallel", title, told, parallel(rows, metric, mode))


def _importance(rows: Sequence[TrialRecord], mode: Mode) -> Section:
    title, shares = "Importance of each key", importance.compute_importances(rows, mode)
    if not shares:
        few = f"Not told: it takes {importance.MIN_TRIALS} trials with results that differ."
        return Section("importance", title, few)
    told = "How differently a key's values are spread among the best trials than among all."
    known = sum(has_metric(row) for row in rows)
    if known < MIN_FOR_FINDING:
        told += f" From {known} trials this is a hint, not a finding."
    return Section("importance", title, told, importances(shares))
