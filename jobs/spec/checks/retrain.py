"""Checks of a retraining: its gate's metric, its held-out rows, and where it starts."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.errors import Fault
from jobs.spec.metrics import check_metric
from jobs.spec.schema import RunSpec
from jobs.spec.sections.retrain import SCRATCH, RetrainSection


def check_retraining(spec: RunSpec, section: RetrainSection) -> Iterator[Fault]:
    """Check that the spec can be evaluated by the gate and trained from the section's start."""
    metric = section.gate.metric
    yield from check_metric("retrain.gate.metric", metric, spec.model.task, spec.data.labels)
    if spec.data.eval is None and spec.data.eval_fraction is None:
        problem = "no rows are held out, so the adapter cannot be evaluated"
        yield Fault("data.eval", problem, "Set data.eval, or data.eval_fraction: 0.05.")
    if section.start == SCRATCH:
        return
    if spec.method.init != "zero":
        problem = f"{spec.method.init} initialises the factors, and so does retrain.start"
        yield Fault("method.init", problem, "Remove it, or use retrain.start: scratch.")
    if spec.method.factor_density < 1 and spec.method.factor_pruning == "gates":
        problem = "training cannot continue with gates: they would prune the ranks of its start"
        yield Fault("method.factor_pruning", problem, "Use fixed, or retrain.start: scratch.")
