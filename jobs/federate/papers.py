"""What a federation keeps in its run's folder beside the papers of any run."""

from __future__ import annotations

from jobs.federate.door import Federated
from jobs.store.asked import keep_asked as keep
from jobs.store.runs import RunStore

FEDERATION = "federation.yaml"
"""What was asked, whole."""


def keep_asked(asked: Federated, runs: RunStore) -> None:
    """Keeps what was asked; a run that goes on must be asked the same. Raises InputError."""
    keep(asked.text(), runs, FEDERATION, what="federation")
