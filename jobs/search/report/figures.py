"""The figures of a search's report: Optuna's own, over the study that its trials make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from optuna.study import Study
from optuna.visualization import (
    plot_intermediate_values,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_pareto_front,
)

from jobs.search.report.importance import MIN_TRIALS, plot_importances
from jobs.search.report.pareto import COSTS, Mode, select_comparable
from jobs.search.report.study import build_study
from jobs.search.trial_record import TrialRecord

FEW_TRIALS = 40
"""Trials below which the importance of keys is a hint: it found the right one in 3 of 4 searches
of 12 made-up trials, and in 9 of 10 of 40."""
TICK_LENGTH = 24
COST_TITLES = {
    "trainable_share": "trainable share of the parameters",
    "node_bytes": "bytes sent out of a machine",
    "adapter_bytes": "size of the adapter in bytes",
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its title and caption; without a figure, the caption says why."""

    id: str
    title: str
    caption: str
    figure: Any = None


def build_figures(records: Sequence[TrialRecord], metric: str, mode: Mode) -> list[ReportFigure]:
    """Return the figures of a report in their order."""
    study, name = build_study(records, mode), escape(metric)
    curves = _build_curves(records, study, metric)
    if not (count := len(select_comparable(records))):
        return [curves, ReportFigure("history", "Results", "No trial has a result.")]
    history = plot_optimization_history(study, target_name=name)
    parallel = plot_parallel_coordinate(study, target_name=name)
    parallel.for_each_annotation(lambda tick: tick.update(text=tick.text[:TICK_LENGTH]))
    return [
        curves,
        ReportFigure(
            "history", f"{metric} of each trial", "The line shows the best value so far.", history
        ),
        ReportFigure(
            "parallel", "Searched values", "Each line is a trial with a result.", parallel
        ),
        _build_importance(study, name, count),
        *(_build_front(records, name, mode, cost) for cost in COSTS),
    ]


def _build_curves(records: Sequence[TrialRecord], study: Study, metric: str) -> ReportFigure:
    title = f"{metric} over the steps"
    if not any(record.curve for record in records):
        return ReportFigure("curves", title, "No trial has been evaluated.")
    figure = plot_intermediate_values(study)
    figure.update_layout(yaxis_title=escape(metric))
    return ReportFigure("curves", title, "Failed trials are not shown.", figure)


def _build_importance(study: Study, metric: str, count: int) -> ReportFigure:
    figure = plot_importances(study, metric)
    caption = "How much the values of a key differ in distribution between the best and all trials."
    if figure is None:
        caption = f"Unknown: at least {MIN_TRIALS} trials with different results are required."
    elif count < FEW_TRIALS:
        caption += f" With {count} trials, this is only a rough estimate."
    return ReportFigure("importance", "Importance of each key", caption, figure)


def _build_front(
    records: Sequence[TrialRecord], metric: str, mode: Mode, cost: str
) -> ReportFigure:
    title = f"Quality against {COST_TITLES[cost]}"
    study = build_study(records, mode, cost=cost)
    if not study.best_trials:
        return ReportFigure(cost, title, "No trial has both a result and this cost.")
    caption = "Trials on the Pareto front are red."
    figure = plot_pareto_front(study, target_names=[COST_TITLES[cost], metric])
    return ReportFigure(cost, title, caption, figure)
