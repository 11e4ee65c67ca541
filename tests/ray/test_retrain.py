"""Retrainings on a real Ray, from the first adapter to a rollback, and again from every seam."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import list_versions, read_pointer, resolve_adapter, rollback
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import read_heartbeat
from jobs.store.runs.run_store import RunStore
from jobs.train.request import EVALUATION_FILE
from tests.jobs.retrain.specs import raw_retrain
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
GATE = {"gate": {"tolerance": 0.5}}
BAD = {"learning_rate": 0.5, "warmup": 0.0}


class Place:
    """A model, rows that grow, and what retrainings left in the store."""

    def __init__(self, folder: Path, head: Head) -> None:
        self._folder, self._head = folder, head
        self.store = DirectoryStore(folder / "store")
        tiny_chat_model(folder / "model")
        chat_rows(folder / "eval.jsonl", 8)
        self.said, self.current_after = dict[str, str](), dict[str, str]()

    def rows(self, count: int) -> None:
        chat_rows(self._folder / "train.jsonl", count)

    def retrain(
        self, run: str, *, attempt: int = 1, ray: bool = True, workers: int = 1, **train: Any
    ) -> None:
        spec = raw_retrain(
            self._folder, GATE, train={"steps": 10, **train}, cluster={"workers": workers}
        )
        path = write_spec(self._folder / f"{run}.yaml", spec)
        words = ("jobs.retrain", "--spec", str(path), "--run", run, "--attempt", str(attempt))
        job = self._head.run(*words) if ray else _alone(*words)
        said, _ = job.communicate(timeout=400)
        assert job.returncode == 0, said
        self.said[run], self.current_after[run] = said, resolve_adapter(self.store, "tiny").label

    def events(self, run: str) -> list[dict[str, Any]]:
        return RunStore(self.store, run).events.tail(0)[0]

    def last(self, run: str) -> dict[str, Any]:
        return self.events(run)[-1]


def _alone(*words: str) -> subprocess.Popen[str]:
    """Where no Ray answers: whoever asks for one fails."""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Place:
    """The first retraining, one that is better and one that is worse; after each, one in vain."""
    made = Place(tmp_path_factory.mktemp("retrain"), head)
    made.rows(24)
    made.retrain("first")
    made.retrain("none", ray=False)
    made.rows(48)
    made.retrain("second", workers=2)
    made.rows(60)
    made.retrain("bad", **BAD)
    made.retrain("bad-again", ray=False, **BAD)
    return made


def test_a_name_without_any_version_starts_from_scratch_and_is_promoted(place):
    first = resolve_adapter(place.store, "tiny@v1")
    assert (first.run, first.parent, first.kind) == ("first", None, "slora")
    assert place.last("first")["event"] == "promoted"
    assert read_heartbeat(place.store, "first")["ended"]


def test_nothing_new_costs_no_ray_and_says_who_has_learnt_it(place):
    assert place.last("none") | {"time": 0} == {
        "event": "nothing new", "time": 0, "adapter": "tiny@v1",
        "why": "tiny@v1 was trained on these 24 rows",
    }  # fmt: skip
    assert "nothing new: tiny@v1 was trained on these 24 rows" in place.said["none"]


def test_new_rows_are_learnt_from_where_the_current_one_is(place):
    second = resolve_adapter(place.store, "tiny@v2")
    assert (second.run, second.parent) == ("second", "tiny@v1")
    before, end = second.evaluation["before"]["loss"], second.evaluation["end"]["loss"]
    first = resolve_adapter(place.store, "tiny@v1")
    assert before == pytest.approx(first.evaluation["end"]["loss"], rel=1e-4)
    assert end < before
    assert place.current_after["second"] == "tiny@v2"


def test_what_the_gate_measured_is_what_the_trainings_did(place):
    found = json.loads(place.store.get(f"runs/second/{EVALUATION_FILE}"))["metrics"]
    for label in ("tiny@v1", "tiny@v2"):
        measured = resolve_adapter(place.store, label).evaluation["end"]["loss"]
        assert found[label]["held-out"]["loss"] == pytest.approx(measured, rel=1e-4)


def test_one_that_is_worse_is_kept_with_its_numbers_and_not_promoted(place):
    assert list_versions(place.store, "tiny") == [1, 2, 3]
    decided = place.last("bad")
    assert (decided["event"], decided["adapter"]) == ("kept", "tiny@v3")
    assert "as good as current (held-out rows)" in decided["why"]
    assert place.current_after["bad"] == "tiny@v2"
    assert "kept tiny@v3, not promoted" in place.said["bad"]
    assert "gate by eval_loss, tiny@v3 beside tiny@v2" in place.said["bad"]


def test_the_same_failure_is_not_made_at_every_firing(place):
    assert place.last("bad-again")["adapter"] == "tiny@v3"
    assert place.last("bad-again")["event"] == "nothing new"


def test_a_rollback_stands_whatever_attempt_comes_back(place):
    rollback(place.store, "tiny")
    moves = len(read_pointer(place.store, "tiny").moves)
    # Its adapter is there and was judged: the attempt has nothing to do, and needs no Ray for it.
    place.retrain("second", attempt=2, ray=False, workers=2)
    assert place.current_after["second"] == "tiny@v1"
    assert len(read_pointer(place.store, "tiny").moves) == moves


def test_an_attempt_after_a_death_before_the_gate_measures_and_decides(place):
    place.store.delete(f"runs/bad/{EVALUATION_FILE}")
    place.retrain("bad", attempt=2, **BAD)
    assert place.last("bad")["event"] == "kept"
    assert list_versions(place.store, "tiny") == [1, 2, 3]


@pytest.mark.long
def test_slora_train_runs_a_retraining_to_its_decision_and_the_next_finds_nothing(head, tmp_path):
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 24)
    chat_rows(tmp_path / "eval.jsonl", 8)
    spec = write_spec(tmp_path / "retrain.yaml", raw_retrain(tmp_path, GATE))
    words = [str(Path(sys.executable).with_name("slora")), "train", str(spec), "--json"]
    there = {**head.environment, "RAY_ADDRESS": head.url}
    done = [
        subprocess.run(words, env=there, capture_output=True, text=True, timeout=300, check=False)
        for _ in range(2)
    ]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    decisions = [json.loads(one.stdout)["decision"]["event"] for one in done]
    assert decisions == ["promoted", "nothing new"]
    assert "Connected to Ray" not in done[1].stderr
