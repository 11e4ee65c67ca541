"""What a run was asked, kept in its folder: who goes on with the run must ask the same."""

from __future__ import annotations

from jobs.errors import Fault, InputError, NotInStore
from jobs.store.runs.run_store import RunStore


def pin_spec(text: str, runs: RunStore, name: str, *, kind: str) -> None:
    """Keeps `text` as the paper `part`. Raises InputError where the run was asked another.

    `what` the run is, for people: a retraining, a federation.
    """
    try:
        pinned = runs.read_text(name)
    except NotInStore:
        runs.write_text(name, text)
        return
    if pinned != text:
        problem = f"{runs.run_id} was another {kind}: its spec differs"
        raise InputError([Fault("--run", problem, "Use its spec, or another id.")])
