"""A run's lead over its checkpoints, which a kill at the worst moment would repeat."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobs.store.local import DirectoryStore
from tests.ranks import run_ranks
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_several

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]
EVERY = 3
PATIENCE_S = 1.0
"""A checkpoint waits so long for a step that must not come."""


class Watching(DirectoryStore):
    """Before it completes a checkpoint, it checks that no step that depends on it is recorded."""

    ahead: ClassVar[list[int]] = []
    """Steps that were recorded before the checkpoint below them was complete."""
    checkpoints: ClassVar[list[int]] = []
    """Steps of the checkpoints that were looked at."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if key.endswith("/state.json"):
            run, step = key.split("/")[1], int(key.split("/")[3])
            self.checkpoints.append(step)
            self._look(self.root / "runs" / run / "metrics.jsonl", step)
        super().put(key, data, create_only=create_only)

    def _look(self, metrics: Path, step: int) -> None:
        until, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while time.monotonic() < until:
            if f'"step":{step + 1},' in metrics.read_text().replace(" ", ""):
                self.ahead.append(step + 1)
                return
            pause.wait(0.02)


def test_no_step_is_recorded_before_the_checkpoint_below_it_is_complete(tmp_path):
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 60)
    spec = tiny_spec(tmp_path, train={"steps": 8, "checkpoint_every": EVERY})
    [(losses, checkpoints, ahead)] = run_ranks(
        _train_watched, 1, TrainingCase("watched", spec), str(tmp_path / "store")
    )
    assert len(losses) == 8
    # Every third step, and the end of each stage.
    assert checkpoints == [2, 3, 6, 8]
    assert ahead == []


def _train_watched(
    rank: int, case: TrainingCase, store: str
) -> tuple[list[float], list[int], list[int]]:
    import jobs.store.open

    def open_watching(url: str, **options: Any) -> Watching:
        return Watching(Path(store))

    jobs.store.open.open_store = open_watching  # type: ignore[assignment]  # in its own process
    result = train_several(rank, [case], 1)[case.run]
    return result["losses"], Watching.checkpoints, Watching.ahead
