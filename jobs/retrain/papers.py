"""What a retraining keeps in its run's folder, so that it can be gone on with at every seam."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from jobs.errors import AlreadyThere, NotFound
from jobs.retrain.door import Retrain
from jobs.spec import Frozen
from jobs.store.asked import keep_asked as keep
from jobs.store.manifest import Digest, Label
from jobs.store.runs import RunStore

RETRAIN = "retrain.yaml"
"""What was asked, whole."""
LOOKED = "looked.json"
"""What was found when the run first looked; later attempts go by it."""


class Looked(Frozen):
    """How things stood when the run began."""

    format: int = 1
    current: Label | None = None
    """The adapter that the bare name meant, as NAME@v2; None where there was none."""
    move: Annotated[int, Field(ge=1)] | None = None
    """The number of the pointer's last move: a promotion counts only while it still is."""
    start: Label | None = None
    """The adapter that the training goes on from; None: from scratch."""
    newest: Annotated[int, Field(ge=0)] = 0
    """The name's newest version then: what the run commits has a higher number."""
    train_sha256: Digest


def keep_asked(asked: Retrain, runs: RunStore) -> None:
    """Keeps what was asked; a run that goes on must be asked the same. Raises InputError."""
    keep(asked.text(), runs, RETRAIN, what="retraining")


def read_looked(runs: RunStore) -> Looked | None:
    """What an earlier attempt found; None where none got so far, or was cut short there."""
    try:
        return Looked.model_validate_json(runs.store.get(runs.key(LOOKED)))
    except (NotFound, ValidationError):
        return None


def keep_looked(runs: RunStore, looked: Looked, *, anew: bool = False) -> Looked:
    """Keeps it, unless another attempt has meanwhile: then what that one found counts."""
    data = looked.model_dump_json(indent=2).encode()
    try:
        runs.store.put(runs.key(LOOKED), data, create_only=not anew)
    except AlreadyThere:
        found = read_looked(runs)
        if found is not None:
            return found
        runs.store.put(runs.key(LOOKED), data)
    return looked
