"""What one worker is told: the spec, the plan and what the check learnt, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.inspect.datasets.scan import DatasetScan
from jobs.plan.plan import Plan
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection

HELD_OUT, PREVIOUS_EVAL = "held-out", "before"
"""The two sets of rows that adapters are judged by: those that the spec holds out now, and those
that an earlier adapter was judged by."""

EVALUATION_FILE = "judged.json"
"""Written when adapters were measured: what was asked, and figures by adapter and set of rows."""


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that an earlier adapter was judged by."""

    scan: DatasetScan
    path: str
    """As data.eval, or as data.train where they are a share of it."""
    file_count: int | None = None
    """Only the first so many files; all where it is not given."""
    fraction: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One run as its workers see it. Crosses processes by pickle, so it holds plain values only."""

    spec: RunSpec
    run_id: str
    plan: Plan
    base: Path
    base_digest: str
    train_data: DatasetScan
    eval_data: DatasetScan | None
    search: str | None = None
    """The search whose best trial this run is; it goes into the manifest."""
    parent: str | None = None
    """The adapter that the training goes on from, as NAME@v2; it goes into the manifest."""
    adapters: tuple[str, ...] = ()
    """Adapters to measure, as NAME@v2. Where there are any, nothing is trained."""
    previous_eval: HeldOutRows | None = None
    """Rows that they are measured on beside the spec's own."""
    federation: FederationSection | None = None
    """Where many clients train, each on rows of its own."""

    @property
    def evaluation_inputs(self) -> dict[str, Any]:
        """What is to be measured on which rows, as plain values: the same again has been done."""
        eval_data, data = self.eval_data, self.spec.data
        return {
            "adapters": list(self.adapters),
            HELD_OUT: eval_data.sha256
            if eval_data
            else [self.train_data.sha256, data.eval_fraction],
            PREVIOUS_EVAL: [
                self.previous_eval.scan.sha256,
                self.previous_eval.file_count,
                self.previous_eval.fraction,
            ]
            if self.previous_eval
            else None,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in the order of their numbers; empty for a language model."""
        return self.train_data.labels
