"""Pin the spec of a run, so that only the same spec can resume it."""

from __future__ import annotations

from jobs.errors import Fault, InputError, NotInStore
from jobs.store.runs.run_store import RunStore


def pin_spec(text: str, runs: RunStore, name: str, *, kind: str) -> None:
    """Write `text` as the file `name` of the run, or raise InputError if it holds another text.

    `kind` names the run in the message: a retraining, a federation.
    """
    try:
        pinned = runs.read_text(name)
    except NotInStore:
        runs.write_text(name, text)
        return
    if pinned != text:
        problem = f"{runs.run_id} is a {kind} with a different spec"
        raise InputError([Fault("--run", problem, "Use the spec of that run, or another run id.")])
