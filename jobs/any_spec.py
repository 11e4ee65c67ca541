"""What a YAML file may hold: one run, a search, a retraining, or a federation."""

from __future__ import annotations

from jobs.federate.section import FederationSection
from jobs.retrain.section import RetrainSection
from jobs.search.section import SearchSection
from jobs.spec import RunSpec


class AnySpec(RunSpec):
    """A spec, with at most one of the sections that make more of it than one run."""

    search: SearchSection | None = None
    """Makes it a search, for `slora search`; `slora train` refuses it."""
    retrain: RetrainSection | None = None
    """Makes it a retraining: `slora train` then looks for new rows first, and judges at the end."""
    federation: FederationSection | None = None
    """Makes it a federation: clients train alone on rows of their own, and are averaged."""
