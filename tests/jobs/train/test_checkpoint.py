"""Checkpoints: written during the next steps, in order, complete or absent."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from jobs.errors import DigestMismatch, StoreError, TrainingFailed
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import (
    MAX_CHECKPOINTS,
    CheckpointSaver,
    TrainingState,
    load_newest_state,
    save_state,
)


def _state(step: int) -> TrainingState:
    weights, first, second = ({"layer.values": torch.full((5,), float(step))} for _ in range(3))
    moments = {"exp_avg": first, "exp_avg_sq": second}
    return TrainingState(0, step, step, weights, moments, {"ledger": {"tokens": step}})


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(DirectoryStore(tmp_path), "run")


class Slow(DirectoryStore):
    """A store whose writes wait for a gate."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        self.gate.wait(10)
        super().put(key, data, create_only=create_only)


class Full(DirectoryStore):
    """A store on a disk without space."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        raise StoreError(f"{key}: No space left on device. Make room.")


def test_the_newest_two_are_retained_and_read_back_completely(runs):
    for step in (2, 4, 6, 8):
        save_state(runs, _state(step))
    assert runs.list_checkpoint_steps() == [6, 8]
    assert len(runs.list_checkpoint_steps()) == MAX_CHECKPOINTS
    state = load_newest_state(runs)
    assert state is not None and state.step == 8
    assert torch.equal(state.moments["exp_avg_sq"]["layer.values"], torch.full((5,), 8.0))


@pytest.mark.parametrize("part", ["state.safetensors", "state.json"])
def test_a_checkpoint_that_was_cut_short_does_not_count(runs, part):
    save_state(runs, _state(2))
    save_state(runs, _state(4))
    path = runs.store.local_path(runs.checkpoint_key(4, part))
    path.write_bytes(path.read_bytes()[:-7])
    state = load_newest_state(runs)
    assert state is not None and state.step == 2


def test_a_step_does_not_wait_for_the_writing(tmp_path):
    store = Slow(tmp_path)
    runs = RunStore(store, "run")
    written = list[int]()
    with CheckpointSaver(runs) as saver:
        saver.save(_state(2), written.append)
        assert not written
        store.gate.set()
    assert written and runs.list_checkpoint_steps() == [2]


def test_an_error_of_the_writing_is_raised_by_the_next_save(tmp_path):
    with CheckpointSaver(RunStore(Full(tmp_path), "run")) as saver:
        saver.save(_state(2), lambda size: None)
        with pytest.raises(StoreError, match="No space left"):
            saver.save(_state(4), lambda size: None)


def test_an_error_of_the_run_is_raised_and_not_the_one_of_its_last_checkpoint(tmp_path):
    def diverge() -> None:
        with CheckpointSaver(RunStore(Full(tmp_path), "run")) as saver:
            saver.save(_state(2), lambda size: None)
            raise TrainingFailed("step 3", "diverged", "")

    with pytest.raises(TrainingFailed, match="diverged"):
        diverge()


def test_bytes_that_come_back_changed_are_no_checkpoint(tmp_path):
    class Forgetful(DirectoryStore):
        def get(self, key: str) -> bytes:
            return super().get(key)[:-1]

    with pytest.raises(DigestMismatch):
        save_state(RunStore(Forgetful(tmp_path), "run"), _state(2))
