"""The state of a run, free of world size: what is trained, its moments, and how far it is.

It is written from a thread, while the next steps are taken: a step waits for its copy in memory
only. Lies in the run's folder as `checkpoints/<step>/state.safetensors`, then `state.json`, whose
presence says that the first is whole. The base is never in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from jobs.errors import DigestMismatch
from jobs.store.runs import STATE, TENSORS, RunStore

KEPT = 2
"""Checkpoints of a run that stay: the newest may be the one that a crash interrupted."""


@dataclass(frozen=True)
class State:
    """Where a run is. `weights` and `moments` are float32, whole, by parameter name."""

    stage: int
    """Index in the plan's stages."""
    stage_step: int
    """Optimiser steps done in it."""
    step: int
    """Optimiser steps done in all."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    """What has been measured so far: evaluations, the ledger, the hand-off."""


class Saver:
    """Writes checkpoints behind the run's back, one at a time and in order."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: State, done: Callable[[int], None]) -> None:
        """Begins to write `state`, which nobody may change any more; `done` is told its bytes.

        Waits for the checkpoint before, and raises what it met.
        """
        self.wait()
        self._writing = self._thread.submit(lambda: done(save_state(self._runs, state)))

    def wait(self) -> None:
        """Until what was begun is written. Raises what the writing met."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def save_state(runs: RunStore, state: State) -> int:
    """Writes a checkpoint, reads it back, drops the oldest ones, and says how many bytes it has.

    Raises DigestMismatch where other bytes come back than were written.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in state.weights.items()}
    for moment, values in state.moments.items():
        tensors.update({f"{moment}/{name}": tensor for name, tensor in values.items()})
    packed = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    plain = {
        "stage": state.stage,
        "stage_step": state.stage_step,
        "step": state.step,
        "record": state.record,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    tensors_key = runs.checkpoint_key(state.step, TENSORS)
    runs.store.put(tensors_key, packed)
    read = hashlib.sha256(runs.store.get(tensors_key)).hexdigest()
    if read != plain["sha256"]:
        raise DigestMismatch(tensors_key, str(plain["sha256"]), read)
    runs.store.put(runs.checkpoint_key(state.step, STATE), json.dumps(plain).encode())
    for old in runs.checkpoint_steps()[:-KEPT]:
        drop(runs, old)
    return len(packed)


def newest_state(runs: RunStore) -> State | None:
    """The newest checkpoint that is whole, or None."""
    for step in reversed(runs.checkpoint_steps()):
        if (state := _read(runs, step)) is not None:
            return state
    return None


def drop(runs: RunStore, step: int) -> None:
    """Removes a checkpoint, its seal first: a half-removed one doesn't count."""
    for name in (STATE, TENSORS):
        runs.store.delete(runs.checkpoint_key(step, name))


def _read(runs: RunStore, step: int) -> State | None:
    if runs.store.head(runs.checkpoint_key(step, STATE)) is None:
        return None
    try:
        plain = json.loads(runs.store.get(runs.checkpoint_key(step, STATE)))
    except ValueError:
        return None  # cut short by a crash of the machine
    packed = runs.store.get(runs.checkpoint_key(step, TENSORS))
    if hashlib.sha256(packed).hexdigest() != plain["sha256"]:
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load(packed).items():
        kind, _, parameter = name.partition("/")
        parts.setdefault(kind, {})[parameter] = tensor
    weights = parts.pop("weights", {})
    return State(
        stage=plain["stage"],
        stage_step=plain["stage_step"],
        step=plain["step"],
        weights=weights,
        moments=parts,
        record=plain["record"],
    )
