"""What a federation keeps in its run's folder beside the papers of any run."""

from __future__ import annotations

from jobs.errors import Fault, InputError, NotFound
from jobs.federate.door import Federated
from jobs.store.runs import RunStore

FEDERATION = "federation.yaml"
"""What was asked, whole."""


def keep_asked(asked: Federated, runs: RunStore) -> None:
    """Keeps what was asked; a run that goes on must be asked the same. Raises InputError."""
    text = asked.text()
    try:
        before = runs.read_text(FEDERATION)
    except NotFound:
        runs.write_text(FEDERATION, text)
        return
    if before != text:
        problem = f"{runs.run_id} was another federation: its spec differs"
        raise InputError([Fault("--run", problem, "Use its spec, or another id.")])
