"""Pin the spec of a run, so that only the same spec can resume it."""

from __future__ import annotations

from jobs.errors import Fault, InputError, NotInStore
from jobs.spec.kinds import get_kind
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.store.runs.run_store import RunStore


def pin_spec(spec: RunSpec, runs: RunStore) -> None:
    """Write the spec into the run's folder. Raise InputError if the run has another one."""
    kind, text = get_kind(spec), dump_spec(spec)
    try:
        pinned = runs.read_text(kind.spec_file)
    except NotInStore:
        runs.write_text(kind.spec_file, text)
        return
    if pinned != text:
        problem = f"{runs.run_id} is {kind.noun} with a different spec"
        raise InputError([Fault("--run", problem, "Use the spec of that run, or another run id.")])
