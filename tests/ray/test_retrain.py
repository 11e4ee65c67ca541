"""Retrainings on a real Ray, from the first adapter to a rollback, and resumed at each step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import list_versions, read_pointer, resolve_adapter, rollback
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import read_heartbeat
from jobs.store.runs.run_store import RunStore
from jobs.train.request import EVALUATION_FILE
from tests.jobs.retrain.specs import raw_retrain
from tests.long import long_asked
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, write_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
GATE = {"gate": {"tolerance": 0.5}}
BAD = {"learning_rate": 0.5, "warmup": 0.0}


class Workspace:
    """A model, growing rows, and the store of the retrainings."""

    def __init__(self, folder: Path, head: Head) -> None:
        self._folder, self._head = folder, head
        self.store = DirectoryStore(folder / "store")
        tiny_chat_model(folder / "model")
        chat_rows(folder / "eval.jsonl", 8)
        self.outputs, self.current_after = dict[str, str](), dict[str, str]()

    def rows(self, count: int) -> None:
        chat_rows(self._folder / "train.jsonl", count)

    def retrain(
        self, run: str, *, attempt: int = 1, ray: bool = True, workers: int = 1, **train: Any
    ) -> None:
        spec = self._make_spec(workers, train)
        path = write_spec(self._folder / f"{run}.yaml", spec)
        words = ("jobs.retrain", "--spec", str(path), "--run", run, "--attempt", str(attempt))
        job = self._head.run(*words) if ray else _run_without_ray(*words)
        output, _ = job.communicate(timeout=400)
        assert job.returncode == 0, output
        self.outputs[run], self.current_after[run] = (
            output,
            resolve_adapter(self.store, "tiny").label,
        )

    def train(self, run: str) -> None:
        """Fine-tune from scratch, without Ray and its processes."""
        spec = {key: value for key, value in self._make_spec(1, {}).items() if key != "retrain"}
        train_all([TrainingCase(run, spec)], 1)

    def _make_spec(self, workers: int, train: Mapping[str, Any]) -> dict[str, Any]:
        return raw_retrain(
            self._folder, GATE, train={"steps": 10, **train}, cluster={"workers": workers}
        )

    def events(self, run: str) -> list[dict[str, Any]]:
        return RunStore(self.store, run).events.tail(0)[0]

    def last(self, run: str) -> dict[str, Any]:
        return self.events(run)[-1]


def _run_without_ray(*words: str) -> subprocess.Popen[str]:
    """Run a module where no Ray answers, so that it fails if it needs one."""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def workspace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, head: Head
) -> Workspace:
    """Run a retraining of a first adapter, without new data and with some. Long: a retraining makes
    the first one too, and there is a worse one.
    """
    workspace = Workspace(tmp_path_factory.mktemp("retrain"), head)
    workspace.rows(24)
    if long_asked(request):
        workspace.retrain("first")
    else:
        workspace.train("first")
    workspace.retrain("none", ray=False)
    workspace.rows(48)
    workspace.retrain("second")
    if long_asked(request):
        workspace.rows(60)
        workspace.retrain("bad", workers=2, **BAD)
        workspace.retrain("bad-again", ray=False, workers=2, **BAD)
    return workspace


@pytest.mark.long
def test_a_name_without_any_version_starts_from_scratch_and_is_promoted(workspace):
    first = resolve_adapter(workspace.store, "tiny@v1")
    assert (first.run, first.parent, first.kind) == ("first", None, "slora")
    assert workspace.last("first")["event"] == "promoted"
    assert read_heartbeat(workspace.store, "first")["ended"]


def test_without_new_data_ray_is_not_used_and_the_reason_is_given(workspace):
    assert workspace.last("none") | {"time": 0} == {
        "event": "no_new_data", "time": 0, "adapter": "tiny@v1",
        "why": "tiny@v1 was trained on these 24 rows",
    }  # fmt: skip
    assert "no new data: tiny@v1 was trained on these 24 rows" in workspace.outputs["none"]


def test_training_on_new_rows_starts_from_the_current_adapter(workspace):
    second = resolve_adapter(workspace.store, "tiny@v2")
    assert (second.run, second.parent) == ("second", "tiny@v1")
    before, end = second.evaluation["before"]["loss"], second.evaluation["end"]["loss"]
    first = resolve_adapter(workspace.store, "tiny@v1")
    assert before == pytest.approx(first.evaluation["end"]["loss"], rel=1e-4)
    assert end < before
    assert workspace.current_after["second"] == "tiny@v2"


def test_the_gate_measures_what_the_trainings_did(workspace):
    metrics = json.loads(workspace.store.get(f"runs/second/{EVALUATION_FILE}"))["metrics"]
    for label in ("tiny@v1", "tiny@v2"):
        loss = resolve_adapter(workspace.store, label).evaluation["end"]["loss"]
        assert metrics[label]["held-out"]["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.long
def test_a_worse_adapter_is_not_promoted_and_its_numbers_are_reported(workspace):
    assert list_versions(workspace.store, "tiny") == [1, 2, 3]
    decision = workspace.last("bad")
    assert (decision["event"], decision["adapter"]) == ("not_promoted", "tiny@v3")
    assert "at least as good as current, held-out rows" in decision["why"]
    assert workspace.current_after["bad"] == "tiny@v2"
    assert "tiny@v3 is not promoted" in workspace.outputs["bad"]
    assert "gate on eval_loss: tiny@v3, baseline tiny@v2" in workspace.outputs["bad"]


@pytest.mark.long
def test_a_rejected_training_is_not_repeated(workspace):
    assert workspace.last("bad-again")["adapter"] == "tiny@v3"
    assert workspace.last("bad-again")["event"] == "no_new_data"


def test_a_rollback_stands_through_later_attempts(workspace):
    rollback(workspace.store, "tiny")
    moves = len(read_pointer(workspace.store, "tiny").moves)
    # Its adapter is committed and evaluated: the attempt has nothing to do and needs no Ray.
    workspace.retrain("second", attempt=2, ray=False)
    assert workspace.current_after["second"] == "tiny@v1"
    assert len(read_pointer(workspace.store, "tiny").moves) == moves


@pytest.mark.long
def test_an_attempt_after_a_crash_before_the_gate_evaluates_and_decides(workspace):
    workspace.store.delete(f"runs/bad/{EVALUATION_FILE}")
    workspace.retrain("bad", attempt=2, workers=2, **BAD)
    assert workspace.last("bad")["event"] == "not_promoted"
    assert list_versions(workspace.store, "tiny") == [1, 2, 3]


@pytest.mark.long
def test_slora_train_runs_a_retraining_and_the_next_has_no_new_data(head, tmp_path):
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 24)
    chat_rows(tmp_path / "eval.jsonl", 8)
    spec = write_spec(tmp_path / "retrain.yaml", raw_retrain(tmp_path, GATE))
    words = [str(Path(sys.executable).with_name("slora")), "train", str(spec), "--json"]
    environment = {**head.environment, "RAY_ADDRESS": head.url}
    results = [
        subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        for _ in range(2)
    ]
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    decisions = [json.loads(result.stdout)["decision"]["event"] for result in results]
    assert decisions == ["promoted", "no_new_data"]
    assert "Connected to Ray" not in results[1].stderr
