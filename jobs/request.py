"""What one worker is told: the spec, the plan and what the check learnt, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data.survey import Survey
from jobs.federate.section import FederationSection
from jobs.plan import Plan
from jobs.spec import Spec

HELD_OUT, OLD = "held-out", "before"
"""The two sets of rows that adapters are judged by: those that the spec holds out now, and those
that an earlier adapter was judged by."""

JUDGED = "judged.json"
"""Written when adapters were measured: what was asked, and figures by adapter and set of rows."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that an earlier adapter was judged by."""

    found: Survey
    where: str
    """As data.eval, or as data.train where they are a share of it."""
    files: int | None = None
    """Only the first so many files; all where it is not given."""
    fraction: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One run as its workers see it. Crosses processes by pickle, so it holds plain values only."""

    spec: Spec
    run_id: str
    plan: Plan
    base: Path
    base_digest: str
    train: Survey
    evaluation: Survey | None
    search: str | None = None
    """The search whose best trial this run is; it goes into the manifest."""
    parent: str | None = None
    """The adapter that the training goes on from, as NAME@v2; it goes into the manifest."""
    judged: tuple[str, ...] = ()
    """Adapters to measure, as NAME@v2. Where there are any, nothing is trained."""
    old: HeldOut | None = None
    """Rows that they are measured on beside the spec's own."""
    federation: FederationSection | None = None
    """Where many clients train, each on rows of its own."""

    @property
    def judging(self) -> dict[str, Any]:
        """What is to be measured on which rows, as plain values: the same again has been done."""
        held, data = self.evaluation, self.spec.data
        return {
            "adapters": list(self.judged),
            HELD_OUT: held.sha256 if held else [self.train.sha256, data.eval_fraction],
            OLD: [self.old.found.sha256, self.old.files, self.old.fraction] if self.old else None,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in the order of their numbers; empty for a language model."""
        return self.train.labels
