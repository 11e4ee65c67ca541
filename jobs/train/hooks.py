"""Hooks into a run: what its owner may observe, replace or end, at fixed points of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from jobs.store.adapters.manifest import Manifest
from slora.masks.strategy import Scorer

Scores = Iterator[tuple[str, Tensor]]
"""A score's values by layer, in the model's order."""


class StoppedEarly(Exception):
    """A hook ended the run: its newest checkpoint is written, and nothing is committed."""


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation of a run."""

    name: str
    """before | sparse | handoff | end | step N | round N."""
    step: int
    """Steps or rounds of the run so far."""
    tokens: int
    metrics: Mapping[str, float]
    is_periodic: bool
    """Measured inside a stage, by `train.eval_every`."""


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint of a run."""

    stage_index: int
    is_stage_end: bool
    step: int
    tokens: int


class RunHooks:
    """The loop calls these methods on every rank. Subclass it and override what you need."""

    wait_for_checkpoints = False
    """Write each checkpoint to its end before the hooks are called and the run continues."""
    generates_samples = True
    """Generate answers to a few prompts before and after the training."""

    def load_evaluation(self, name: str) -> dict[str, float] | None:
        """Return metrics that are known already; the loop records them and does not evaluate."""
        return None

    def on_evaluation(self, report: EvaluationReport) -> bool:
        """Return whether the run continues. A periodic one is reported after its checkpoint."""
        return True

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Observe a checkpoint that is being written, or is written (`wait_for_checkpoints`)."""

    def on_step_end(self, step: int) -> None:
        """Observe the end of a step or round, after its evaluation and its checkpoint."""

    def compute_scores(
        self, scorer: Scorer, shapes: Mapping[str, tuple[int, int]], compute: Callable[[], Scores]
    ) -> Scores:
        """Return each layer's scores: call `compute`, or load them from elsewhere."""
        return compute()

    def commit(self, publish: Callable[[], Manifest]) -> Manifest | None:
        """Commit the adapter, on rank 0 only. Return None to keep the checkpoints alone."""
        return publish()
