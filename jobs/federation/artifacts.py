"""What a federation keeps in its run's folder beside the papers of any run."""

from __future__ import annotations

from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.runs.pinned_spec import pin_spec as keep
from jobs.store.runs.run_store import RunStore

FEDERATION_FILE = KINDS["federate"].spec_file
"""What was asked, whole."""


def pin_spec(federated_spec: FederatedSpec, runs: RunStore) -> None:
    """Keeps what was asked; a run that goes on must be asked the same. Raises InputError."""
    keep(dump_spec(federated_spec), runs, FEDERATION_FILE, kind="federation")
