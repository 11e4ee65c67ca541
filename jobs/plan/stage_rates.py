"""The learning rates of a stage, from those of the spec. No torch."""

from __future__ import annotations

from jobs.spec.sections.training import TrainSection


def get_stage_rate(train: TrainSection, stage: str) -> float:
    """Return the rate of a stage by its name."""
    rate = train.sparse_learning_rate if stage == "sparse" else None
    return _require_number(train.learning_rate if rate is None else rate)


def get_head_rate(train: TrainSection, stage: str) -> float:
    """Return the rate of a head in a stage."""
    rate = train.head_learning_rate
    return get_stage_rate(train, stage) if rate is None else _require_number(rate)


def _require_number(rate: float | str) -> float:
    assert not isinstance(rate, str), "choose the rates before the run is planned"
    return rate
