"""Trains what is due in this process, on one thread, and makes its line."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jobs.errors import TrainingFailed
from tests.benchmarks.candidates.arms import CORPUS, HEAD_RATE, Arm, Point
from tests.benchmarks.candidates.client_weights import train_federation
from tests.benchmarks.candidates.decisions import DueTraining
from tests.benchmarks.candidates.stage_training import StageTrainings
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.quality.corpora import write_rows
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.trainers import Bench
from tests.benchmarks.quality.training import read_code_version, start_process
from tests.benchmarks.quality.variants import Variant

PLUGINS = Path(__file__).parent / "plugins"
"""The metadata of a package with the masks that are measured, as if it was installed."""
ROWS = Path(".cache/candidates/rows")


class TrainingRunner:
    """What a process keeps between trainings."""

    def __init__(self) -> None:
        sys.path.append(str(PLUGINS))
        start_process(1, "cpu")
        self._splits = write_rows(CORPUS, ROWS)
        self._bench, self._stages = Bench(torch.device("cpu")), StageTrainings(self._splits)

    def train(self, due: DueTraining) -> dict[str, Any]:
        """Return the line of a training. Of one that diverged, it says so in `unavailable`."""
        start_time, start_cpu = time.monotonic(), time.process_time()
        try:
            figures = self._train(due.arm, due.point, due.seed)
        except TrainingFailed as error:
            figures = {"unavailable": f"diverged: {error}"}
        shared = figures.pop("shared_seconds", 0.0)
        return {
            "key": due.key, "arm": due.arm.name, "point": dict(due.point), "seed": due.seed,
            **figures, "wall_seconds": round(time.monotonic() - start_time, 1),
            "cpu_seconds": round(time.process_time() - start_cpu + shared, 1), "threads": 1,
            "machine": describe_machine(), "code": read_code_version(),
        }  # fmt: skip

    def _train(self, arm: Arm, point: Point, seed: int) -> dict[str, Any]:
        if arm.trainer == "stages":
            return self._stages.train(arm, point, seed)
        if arm.trainer == "federation":
            return train_federation(arm, point, seed)
        return self._train_by_product(arm, point, seed)

    def _train_by_product(self, arm: Arm, point: Point, seed: int) -> dict[str, Any]:
        variant = Variant(arm.name, {"kind": "sparse", **arm.options})
        setting = Setting(CORPUS, variant, {**point, "head": HEAD_RATE}, seed)
        folder = tempfile.mkdtemp(prefix="slora-candidates-")
        try:
            figures = self._bench.train(setting, self._splits, f"file://{folder}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        end = figures["evaluations"]["end"]
        return {
            "validation": end["accuracy"], "validation_loss": end["loss"],
            "test": figures["test"], "test_loss": figures["test_metrics"]["loss"],
            "trained": figures["trained"],
        }  # fmt: skip
