"""What one worker is told: the spec, the plan and what the check learnt, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.data.survey import Survey
from jobs.plan import Plan
from jobs.spec import Spec


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

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in the order of their numbers; empty for a language model."""
        return self.train.labels
