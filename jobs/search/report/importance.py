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

from jobs.search.report.format import list_keys
from jobs.search.report.pareto import Mode, has_metric
from jobs.search.trial_record import TrialRecord

MIN_TRIALS = 4
"""Trials with a metric; below it there is no "best quarter" to compare with the rest."""
BEST_TRIALS, MIN_BEST_SHARE, MAX_BEST_SHARE = 5, 0.25, 0.5
"""Trials to call the best ones, by the evaluator's own advice, but a quarter to a half of all. With
its default of a tenth, a key that alone made the metric came first in 10 of 30 made-up searches of
12 trials; with these in 23."""
LOG_SPREAD = 10.0
"""Positive numbers as far apart as this were most likely drawn on a log scale."""


def compute_importances(records: Sequence[TrialRecord], mode: Mode) -> dict[str, float]:
    """Each key's share, largest first, of 1 in all; nothing where it can't be told.

    A key with one value has no share, nor has one that a single trial has or lacks.
    """
    measured = [record for record in records if has_metric(record)]
    spaces = {
        key: _infer_space(key, measured)
        for key in list_keys(measured)
        if _is_comparable(key, measured)
    }
    varied = {key: space for key, space in spaces.items() if not space.single()}
    if len(measured) < MIN_TRIALS or not varied or _has_no_contrast(measured, mode):
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_choose_best_share(len(measured)))
    study = _build_study(measured, mode, varied)
    shares = get_param_importances(study, evaluator=evaluator, params=list(varied))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _is_comparable(key: str, records: Sequence[TrialRecord]) -> bool:
    count = sum(key in record.config for record in records)
    return count > 1 and len(records) - count != 1


def _choose_best_share(count: int) -> float:
    return min(MAX_BEST_SHARE, max(MIN_BEST_SHARE, BEST_TRIALS / count))


def _has_no_contrast(records: Sequence[TrialRecord], mode: Mode) -> bool:
    """Whether so many are as good as the best ones that no others are left to compare with."""
    metrics = sorted((record.metric or 0.0 for record in records), reverse=mode == "max")
    return metrics[ceil(_choose_best_share(len(records)) * len(records)) - 1] == metrics[-1]


def _build_study(
    records: Sequence[TrialRecord], mode: Mode, spaces: dict[str, BaseDistribution]
) -> optuna.study.Study:
    """The trials as Optuna would have seen them, in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    for record in records:
        own_spaces = {key: space for key, space in spaces.items() if key in record.config}
        values = {
            key: _encode_value(record.config[key], space) for key, space in own_spaces.items()
        }
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=own_spaces, value=record.metric)
        )
    return study


def _infer_space(key: str, records: Sequence[TrialRecord]) -> BaseDistribution:
    """The space the values seem to come from: a range where most differ, else a choice."""
    values = [record.config[key] for record in records if key in record.config]
    numbers = [value for value in values if _is_number(value)]
    if len(numbers) < len(values) or 2 * len(set(numbers)) <= len(numbers):
        return CategoricalDistribution(sorted({_format_value(value) for value in values}))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high >= LOG_SPREAD * low
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _encode_value(value: Any, space: BaseDistribution) -> Any:
    return _format_value(value) if isinstance(space, CategoricalDistribution) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format_value(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
