"""Early stopping by `train.stop`. Pure: metrics in, reasons out.

A token budget ends the training. A target that is met, and a metric that no longer improves, end
the stage: after the hand-off the count starts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault
from jobs.spec.metrics import METRICS, check_metric
from jobs.spec.schema import RunSpec
from jobs.spec.sections.training import StopSection


@dataclass(frozen=True)
class StoppingState:
    """The best evaluation of a stage so far."""

    best: float | None = None
    evaluations_since_best: int = 0
    """Evaluations after the best one."""


class EarlyStopping:
    """The evaluations of one training so far, and which of its stages they ended."""

    def __init__(self, stop: StopSection) -> None:
        self._stop, self._state, self._stage_ends = stop, StoppingState(), dict[str, int]()

    def start_stage(self) -> None:
        """Start a stage: earlier evaluations do not count for it."""
        self._state = StoppingState()

    def check_budget(self, tokens: int) -> str | None:
        """Return why a training with so many tokens ends, or None."""
        return check_budget(self._stop, tokens)

    def update(self, metrics: Mapping[str, float] | None) -> str | None:
        """Return why the stage ends after this evaluation, or None."""
        if metrics is None:
            return None
        self._state, reason = update_state(self._stop, self._state, metrics)
        return reason

    def end_stages(self, lengths: Mapping[str, int], done: int) -> bool:
        """End the first of these stages after `done` steps, and the others before their first.

        Return False if this saves no step. `lengths` are the stages' steps by name.
        """
        previous = dict(self._stage_ends)
        for name, length in lengths.items():
            if length != done:
                self._stage_ends[name] = done
            done = 0
        return self._stage_ends != previous

    def limit_length(self, name: str, length: int) -> int:
        """Return the steps of a stage that was planned with `length`."""
        return self._stage_ends.get(name, length)

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "best": self._state.best,
            "evaluations_since_best": self._state.evaluations_since_best,
            "stage_ends": {**self._stage_ends},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `to_dict` returned."""
        self._state = StoppingState(saved["best"], saved["evaluations_since_best"])
        self._stage_ends = dict(saved["stage_ends"])


def check_budget(stop: StopSection, tokens: int) -> str | None:
    """Return why a training with so many tokens ends, or None if it continues."""
    if stop.tokens is None or tokens < stop.tokens:
        return None
    return f"{tokens:,} tokens reach the budget of {stop.tokens:,}"


def update_state(
    stop: StopSection, state: StoppingState, metrics: Mapping[str, float]
) -> tuple[StoppingState, str | None]:
    """Return the state after one more evaluation, and why the stage ends, or None.

    A NaN is never the best, and never meets a target.
    """
    name, direction = METRICS[stop.metric]
    value = metrics[name]
    is_better = state.best is None or (
        value < state.best if direction == "min" else value > state.best
    )
    updated = (
        StoppingState(value)
        if is_better and value == value
        else StoppingState(state.best, state.evaluations_since_best + 1)
    )
    if stop.target is not None and (
        value <= stop.target if direction == "min" else value >= stop.target
    ):
        return updated, f"{stop.metric} {value:.4g} meets the target of {stop.target:g}"
    if stop.patience is not None and updated.evaluations_since_best >= stop.patience:
        return (
            updated,
            f"{stop.metric} did not improve in {updated.evaluations_since_best} evaluations",
        )
    return updated, None


def find_stop_faults(spec: RunSpec) -> Iterator[Fault]:
    """Return the faults of `train.stop`: conditions that could never be met."""
    stop = spec.train.stop
    if (stop.tokens, stop.target, stop.patience) == (None, None, None):
        return
    if spec.method.factor_pruning == "gates" and spec.method.factor_density < 1:
        problem = "gates prune until the last step, which early stopping may skip"
        yield Fault("train.stop", problem, "Remove it, or use factor_pruning: fixed.")
    if stop.target is None and stop.patience is None:
        return
    yield from check_metric("train.stop.metric", stop.metric, spec.model.task, spec.data.labels)
    if spec.data.eval is None and spec.data.eval_fraction is None:
        problem = "train.stop needs held-out rows to evaluate"
        yield Fault("data.eval", problem, "Set data.eval, or data.eval_fraction: 0.05.")
    if spec.train.eval_every is None:
        problem = "train.stop needs evaluations during training, not only at its end"
        yield Fault("train.eval_every", problem, "Set it, e.g. eval_every: 20.")


def describe_stop(stop: StopSection) -> list[str]:
    """Describe what may end a training before its last step."""
    conditions = []
    if stop.tokens is not None:
        conditions.append(f"{stop.tokens:,} tokens")
    if stop.target is not None:
        conditions.append(f"{stop.metric} {stop.target:g} reached")
    if stop.patience is not None:
        conditions.append(f"{stop.patience} evaluations without a better {stop.metric}")
    return conditions
