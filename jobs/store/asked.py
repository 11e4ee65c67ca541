"""What a run was asked, kept in its folder: who goes on with the run must ask the same."""

from __future__ import annotations

from jobs.errors import Fault, InputError, NotFound
from jobs.store.runs import RunStore


def keep_asked(text: str, runs: RunStore, part: str, *, what: str) -> None:
    """Keeps `text` as the paper `part`. Raises InputError where the run was asked another.

    `what` the run is, for people: a retraining, a federation.
    """
    try:
        before = runs.read_text(part)
    except NotFound:
        runs.write_text(part, text)
        return
    if before != text:
        problem = f"{runs.run_id} was another {what}: its spec differs"
        raise InputError([Fault("--run", problem, "Use its spec, or another id.")])
