"""The trials of a search as an Optuna study, which Optuna's importance and figures read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jobs.search.report.format import list_keys
from jobs.search.report.pareto import Mode, select_comparable
from jobs.search.trial_record import TrialRecord

LOG_SPREAD = 10.0
"""Positive numbers as far apart as this were most likely drawn on a log scale."""


def build_study(records: Sequence[TrialRecord], mode: Mode, *, cost: str | None = None) -> Study:
    """Return the trials as a study in memory; with `cost`, its first objective is that cost.

    A trial without a result is in it as failed or running. All texts are escaped, because plotly
    renders the markup in them.
    """
    priced = [r for r in select_comparable(records) if not cost or getattr(r, cost) is not None]
    spaces = {key: _infer_space(key, priced) for key in list_keys(priced)}
    results = {
        record.number: [*([getattr(record, cost)] if cost else []), record.metric]
        for record in priced
    }
    direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
    study = _create_study([*([StudyDirection.MINIMIZE] if cost else []), direction])
    for record in records:
        study.add_trial(_make_trial(record, spaces, results.get(record.number)))
    return study


def _create_study(directions: list[StudyDirection]) -> Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(directions=directions)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _make_trial(
    record: TrialRecord, spaces: Mapping[str, BaseDistribution], values: list[Any] | None
) -> FrozenTrial:
    known = {key: space for key, space in spaces.items() if values and key in record.config}
    unfinished = TrialState.RUNNING if record.status == "running" else TrialState.FAIL
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if values else unfinished,
        params={escape(key): _encode_value(record.config[key]) for key in known},
        distributions={escape(key): space for key, space in known.items()},
        values=values,
        intermediate_values={step: value for step, value in record.curve if isfinite(value)},
    )


def _infer_space(key: str, records: Sequence[TrialRecord]) -> BaseDistribution:
    """Return the space the values seem to come from: a range where most differ, else a choice."""
    values = [_encode_value(record.config[key]) for record in records if key in record.config]
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values) or 2 * len(set(numbers)) <= len(numbers):
        return CategoricalDistribution(sorted(set(values), key=lambda v: (isinstance(v, str), v)))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high >= LOG_SPREAD * low
    integers = [number for number in numbers if isinstance(number, int)]
    if len(integers) == len(numbers):
        return IntDistribution(min(integers), max(integers), log=log)
    return FloatDistribution(low, high, log=log)


def _encode_value(value: Any) -> int | float | str:
    """Return a value that Optuna takes: numbers as they are, anything else as escaped text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return escape(text, quote=False)
