"""How much each searched key mattered for reaching the best trials, by Optuna's PED-ANOVA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import ceil
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from jobs.search.pareto import Mode, has_metric
from jobs.search.rows import Row
from jobs.search.wording import keys_of

ENOUGH = 4
"""Trials with a metric; below it there is no "best quarter" to compare with the rest."""
TOP, LEAST, MOST = 5, 0.25, 0.5
"""Trials to call the best ones, by the evaluator's own advice, but a quarter to a half of all. With
its default of a tenth, a key that alone made the metric came first in 10 of 30 made-up searches of
12 trials; with these in 23."""
LOG_SPREAD = 10.0
"""Positive numbers as far apart as this were most likely drawn on a log scale."""


def of(rows: Sequence[Row], mode: Mode) -> dict[str, float]:
    """Each key's share, largest first, of 1 in all; nothing where it can't be told.

    A key with one value has no share, nor has one that a single trial has or lacks.
    """
    known = [row for row in rows if has_metric(row)]
    spaces = {key: _space(key, known) for key in keys_of(known) if _comparable(key, known)}
    varied = {key: space for key, space in spaces.items() if not space.single()}
    if len(known) < ENOUGH or not varied or _all_best(known, mode):
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_best_share(len(known)))
    study = _study(known, mode, varied)
    found = get_param_importances(study, evaluator=evaluator, params=list(varied))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _comparable(key: str, rows: Sequence[Row]) -> bool:
    having = sum(key in row.config for row in rows)
    return having > 1 and len(rows) - having != 1


def _best_share(count: int) -> float:
    return min(MOST, max(LEAST, TOP / count))


def _all_best(rows: Sequence[Row], mode: Mode) -> bool:
    """Whether so many are as good as the best ones that no others are left to compare with."""
    metrics = sorted((row.metric or 0.0 for row in rows), reverse=mode == "max")
    return metrics[ceil(_best_share(len(rows)) * len(rows)) - 1] == metrics[-1]


def _study(
    rows: Sequence[Row], mode: Mode, spaces: dict[str, BaseDistribution]
) -> optuna.study.Study:
    """The trials as Optuna would have seen them, in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    finally:
        optuna.logging.set_verbosity(before)
    for row in rows:
        mine = {key: space for key, space in spaces.items() if key in row.config}
        values = {key: _seen(row.config[key], space) for key, space in mine.items()}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=mine, value=row.metric)
        )
    return study


def _space(key: str, rows: Sequence[Row]) -> BaseDistribution:
    """The space the values seem to come from: a range where most differ, else a choice."""
    values = [row.config[key] for row in rows if key in row.config]
    numbers = [value for value in values if _is_number(value)]
    if len(numbers) < len(values) or 2 * len(set(numbers)) <= len(numbers):
        return CategoricalDistribution(sorted({_text(value) for value in values}))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high >= LOG_SPREAD * low
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _seen(value: Any, space: BaseDistribution) -> Any:
    return _text(value) if isinstance(space, CategoricalDistribution) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
