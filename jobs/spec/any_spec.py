"""What a YAML file may hold: one run, a search, a retraining, or a federation."""

from __future__ import annotations

from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.retrain import RetrainSection
from jobs.spec.sections.search import SearchSection


class AnySpec(RunSpec):
    """A spec, with at most one of the sections that make more of it than one run."""

    search: SearchSection | None = None
    """Makes it a search, for `slora search`; `slora train` refuses it."""
    retrain: RetrainSection | None = None
    """Makes it a retraining: `slora train` then looks for new rows first, and judges at the end."""
    federation: FederationSection | None = None
    """Makes it a federation: clients train alone on rows of their own, and are averaged."""
