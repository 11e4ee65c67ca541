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
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load, save
from torch import Tensor

from jobs.errors import DigestMismatch
from jobs.store.runs.run_store import CHECKPOINT_STATE, CHECKPOINT_TENSORS, RunStore

MAX_CHECKPOINTS = 2
"""Checkpoints of a run that stay: the newest may be the one that a crash interrupted."""


@dataclass(frozen=True)
class TrainingState:
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


class CheckpointSaver:
    """Writes checkpoints behind the run's back, one at a time and in order."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainingState, on_saved: Callable[[int], None]) -> None:
        """Begins to write `state`, which nobody may change any more; `done` is told its bytes.

        Waits for the checkpoint before, and raises what it met.
        """
        self.wait()
        self._writing = self._executor.submit(lambda: on_saved(save_state(self._runs, state)))

    def wait(self) -> None:
        """Until what was begun is written. Raises what the writing met."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the thread. Raise the writing's error, unless the block raised one itself."""
        try:
            if error is None:
                self.wait()
        finally:
            self._executor.shutdown()


def save_state(runs: RunStore, state: TrainingState) -> int:
    """Writes a checkpoint, reads it back, drops the oldest ones, and says how many bytes it has.

    Raises DigestMismatch where other bytes come back than were written.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in state.weights.items()}
    for moment, values in state.moments.items():
        tensors.update({f"{moment}/{name}": tensor for name, tensor in values.items()})
    packed = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    header = {
        "stage": state.stage,
        "stage_step": state.stage_step,
        "step": state.step,
        "record": state.record,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    tensors_key = runs.checkpoint_key(state.step, CHECKPOINT_TENSORS)
    runs.store.put(tensors_key, packed)
    stored_digest = hashlib.sha256(runs.store.get(tensors_key)).hexdigest()
    if stored_digest != header["sha256"]:
        raise DigestMismatch(tensors_key, str(header["sha256"]), stored_digest)
    runs.store.put(runs.checkpoint_key(state.step, CHECKPOINT_STATE), json.dumps(header).encode())
    for old_step in runs.list_checkpoint_steps()[:-MAX_CHECKPOINTS]:
        drop_checkpoint(runs, old_step)
    return len(packed)


def load_newest_state(runs: RunStore) -> TrainingState | None:
    """The newest checkpoint that is whole, or None."""
    for step in reversed(runs.list_checkpoint_steps()):
        if (state := _read_state(runs, step)) is not None:
            return state
    return None


def drop_checkpoint(runs: RunStore, step: int) -> None:
    """Removes a checkpoint, its seal first: a half-removed one doesn't count."""
    for name in (CHECKPOINT_STATE, CHECKPOINT_TENSORS):
        runs.store.delete(runs.checkpoint_key(step, name))


def _read_state(runs: RunStore, step: int) -> TrainingState | None:
    if runs.store.head(runs.checkpoint_key(step, CHECKPOINT_STATE)) is None:
        return None
    try:
        header = json.loads(runs.store.get(runs.checkpoint_key(step, CHECKPOINT_STATE)))
    except ValueError:
        return None  # cut short by a crash of the machine
    packed = runs.store.get(runs.checkpoint_key(step, CHECKPOINT_TENSORS))
    if hashlib.sha256(packed).hexdigest() != header["sha256"]:
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load(packed).items():
        group, _, parameter = name.partition("/")
        parts.setdefault(group, {})[parameter] = tensor
    weights = parts.pop("weights", {})
    return TrainingState(
        stage=header["stage"],
        stage_step=header["stage_step"],
        step=header["step"],
        weights=weights,
        moments=parts,
        record=header["record"],
    )
