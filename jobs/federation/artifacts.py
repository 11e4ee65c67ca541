"""Write the files that only a federation has into its run's folder."""

from __future__ import annotations

from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.runs.pinned_spec import pin_spec as pin_text
from jobs.store.runs.run_store import RunStore

FEDERATION_FILE = KINDS["federate"].spec_file
"""The full spec of the run."""


def pin_spec(federated_spec: FederatedSpec, runs: RunStore) -> None:
    """Write the spec into the run's folder. Raise InputError if the run has another one."""
    pin_text(dump_spec(federated_spec), runs, FEDERATION_FILE, kind="federation")
