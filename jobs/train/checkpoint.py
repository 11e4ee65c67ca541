"""Checkpoints: the state of a run, independent of its number of workers.

A thread writes them while the next steps are taken: a step waits only for its copy in memory. A
checkpoint is `checkpoints/<step>/state.safetensors` in the run's folder, then `state.json`, whose
presence says that the first is complete. The base is never in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from safetensors.torch import load, save
from torch import Tensor

from jobs.errors import DigestMismatch
from jobs.store.runs.run_store import CHECKPOINT_STATE, CHECKPOINT_TENSORS, RunStore

MAX_CHECKPOINTS = 2
"""A run keeps so many checkpoints: the newest may be the one that a crash interrupted."""


@dataclass(frozen=True)
class TrainingState:
    """A run's state. `weights` and `moments` are float32 and complete, by parameter name."""

    stage: int
    """Index in the plan's stages."""
    stage_step: int
    """Optimizer steps done in the stage."""
    step: int
    """Optimizer steps done in all."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    """Everything measured so far: the evaluations and the ledger."""


class CheckpointSaver:
    """Writes checkpoints in a thread, one at a time and in order."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainingState, on_saved: Callable[[int], None]) -> None:
        """Start to write `state`, which must not change any more; `on_saved` gets its size in
        bytes.

        Wait for the previous checkpoint first, and raise its error.
        """
        self.wait()
        self._writing = self._executor.submit(lambda: on_saved(save_state(self._runs, state)))

    def wait(self) -> None:
        """Wait until the checkpoint is written, and raise its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for the thread. Raise the writing's error, unless the block raised one itself."""
        try:
            if error is None:
                self.wait()
        finally:
            self._executor.shutdown()


def save_state(runs: RunStore, state: TrainingState) -> int:
    """Write a checkpoint, read it back, delete the oldest ones, and return its size in bytes.

    Raise DigestMismatch if other bytes come back than were written.
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
    """Return the newest complete checkpoint, or None."""
    for step in reversed(runs.list_checkpoint_steps()):
        if (state := _read_state(runs, step)) is not None:
            return state
    return None


def drop_checkpoint(runs: RunStore, step: int) -> None:
    """Delete a checkpoint, its `state.json` first: without it the rest does not count."""
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
