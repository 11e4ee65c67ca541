"""A retraining resumed after each step, without Ray: what is done is not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, SupersededAttempt, Untrusted
from jobs.retrain.pipeline import Retraining
from jobs.retrain.retrain_artifacts import BASELINE_FILE
from jobs.store.adapters.operations import promote, read_pointer, resolve_adapter, rollback
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import RunStore
from jobs.store.trust.version_trust import sign_version
from jobs.train.request import EVALUATION_FILE, HELD_OUT, PREVIOUS_EVAL
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain
from tests.jobs.trust.keys import Keys
from tests.tiny import chat_rows

RUN = "r2"
CHILD: dict[str, Any] = {"method": {"kind": "lora"}}


class Scene:
    """tiny@v1 is current; run r2 has its baseline, has committed tiny@v2 and evaluated both."""

    def __init__(self, workspace: Path, new: float, old: float) -> None:
        self.workspace, self.store = workspace, DirectoryStore(workspace / "store")
        self.runs = RunStore(self.store, RUN)
        first = committed(workspace, lora_files(workspace / "one"))
        promote(self.store, "tiny", 1)
        self.runs.write_json(BASELINE_FILE, {
            "current": "tiny@v1", "pointer_move": 1, "start": "tiny@v1", "newest_version": 1,
            "train_sha256": first.data.train_sha256,
        })  # fmt: skip
        chat_rows(workspace / "train.jsonl", 9)
        self.adapter = committed(workspace, lora_files(workspace / "two"), run=RUN, spec=CHILD)
        self.write_evaluation(new, old)

    def write_evaluation(self, new: float, old: float) -> None:
        """Write the evaluation as the workers would."""
        eval_sha256 = resolve_adapter(self.store, "tiny@v1").data.eval_sha256
        losses = {"tiny@v2": new, "tiny@v1": old}
        self.runs.write_json(EVALUATION_FILE, {
            "inputs": {"adapters": list(losses), HELD_OUT: eval_sha256,
                      PREVIOUS_EVAL: [eval_sha256, None, None]},
            "metrics": {
                label: {rows: {"loss": loss} for rows in (HELD_OUT, PREVIOUS_EVAL)}
                for label, loss in losses.items()
            },
        })  # fmt: skip

    def run(self, attempt: int = 1, **section: Any) -> dict[str, Any]:
        """Run an attempt and return its last event."""
        Retraining(a_retrain(self.workspace, section), self.runs, attempt).run()
        return self.runs.events.tail(0)[0][-1]

    @property
    def current(self) -> int:
        pointer = read_pointer(self.store, "tiny")
        assert pointer is not None
        return pointer.version


@pytest.fixture
def better(workspace: Path) -> Scene:
    return Scene(workspace, new=1.0, old=2.0)


def test_an_attempt_after_a_crash_behind_the_evaluation_decides(better):
    assert better.run()["event"] == "promoted"
    assert better.current == 2


def test_a_job_of_a_service_records_its_decision_and_leaves_the_pointer(better):
    for attempt in (1, 2):
        Retraining(a_retrain(better.workspace), better.runs, attempt, leaves_pointer=True).run()
        decision = better.runs.events.tail(0)[0][-1]
        assert decision.items() >= {
            "event": "promotion_requested", "adapter": "tiny@v2", "before": "tiny@v1",
            "expected_move": 1,
        }.items()  # fmt: skip
        assert better.current == 1


def test_each_attempt_decides_the_same_and_moves_the_pointer_once(better):
    assert [better.run(attempt)["event"] for attempt in (1, 2, 3)] == ["promoted"] * 3
    pointer = read_pointer(better.store, "tiny")
    assert pointer is not None
    assert [move.version for move in pointer.moves] == [1, 2]


def test_a_rollback_stands(better):
    better.run()
    rollback(better.store, "tiny")
    better.run(2)
    assert better.current == 1


def test_a_worse_adapter_is_not_promoted_and_both_numbers_are_reported(workspace):
    scene = Scene(workspace, new=2.5, old=2.0)
    decision = scene.run()
    assert (decision["event"], decision["adapter"], scene.current) == ("not_promoted", "tiny@v2", 1)
    assert "2.5000 (limit 2.0000)" in decision["why"]


def test_a_passed_gate_promotes_nothing_if_promote_is_false(better):
    decision = better.run(promote=False)
    assert (decision["event"], better.current) == ("not_promoted", 1)
    assert "the gate passed" in decision["why"]


def test_a_promotion_by_hand_in_the_meantime_stands(better):
    committed(better.workspace, lora_files(better.workspace / "hand"), run="hand")
    promote(better.store, "tiny", 3)
    decision = better.run()
    assert (decision["event"], better.current) == ("not_promoted", 3)
    assert "current has moved to v3 meanwhile" in decision["why"]


def test_an_attempt_does_not_promote_once_a_later_one_has_started(better):
    with Heartbeat(better.runs, 2):
        pass
    with pytest.raises(SupersededAttempt, match="attempt 1 of r2 was superseded"):
        better.run(1)
    assert better.current == 1
    assert better.run(2)["event"] == "promoted"


def test_the_gate_reports_that_the_previous_rows_are_missing(better):
    spec = better.workspace / "store/runs/r1/spec.yaml"
    spec.unlink()
    record = json.loads((better.workspace / "store/runs/r2" / EVALUATION_FILE).read_text())
    record["inputs"][PREVIOUS_EVAL] = None
    better.runs.write_json(EVALUATION_FILE, record)
    better.run()
    events, _ = better.runs.events.tail(0)
    gate = next(event for event in events if event["event"] == "gate")
    assert any("files of run r1" in check["requirement"] for check in gate["checks"])


def test_no_new_data_leaves_the_pointer_alone(workspace):
    committed(workspace, lora_files(workspace / "one"))
    runs = RunStore(DirectoryStore(workspace / "store"), "r9")
    Retraining(a_retrain(workspace), runs, 1).run()
    assert [event["event"] for event in runs.events.tail(0)[0]] == ["no_new_data"]
    assert read_pointer(runs.store, "tiny") is None
    assert runs.store.head(runs.key(BASELINE_FILE)) is None


def test_an_incompatible_adapter_is_refused_before_ray_starts_and_becomes_current(workspace):
    committed(workspace, lora_files(workspace / "one", rank=4), spec=CHILD)
    chat_rows(workspace / "train.jsonl", 9)
    runs = RunStore(DirectoryStore(workspace / "store"), "r9")
    with pytest.raises(InputError, match=r"method\.rank: .* factors of tiny@v1 have rank 4"):
        Retraining(a_retrain(workspace), runs, 1).run()
    pointer = read_pointer(runs.store, "tiny")
    assert pointer is not None
    assert pointer.version == 1


def test_another_base_is_refused_with_both_remedies(workspace):
    committed(workspace, lora_files(workspace / "one"), spec=CHILD, base="b" * 64)
    chat_rows(workspace / "train.jsonl", 9)
    runs = RunStore(DirectoryStore(workspace / "store"), "r9")
    refused = r"model\.path: .*another base.* Or use retrain\.start: scratch"
    with pytest.raises(InputError, match=refused):
        Retraining(a_retrain(workspace), runs, 1).run()


def test_a_resumed_run_must_have_the_same_spec(workspace):
    runs = RunStore(DirectoryStore(workspace / "store"), "r9")
    pin_spec(a_retrain(workspace), runs)
    pin_spec(a_retrain(workspace), runs)
    with pytest.raises(InputError, match="r9 is a retraining with a different spec"):
        pin_spec(a_retrain(workspace, {"promote": False}), runs)


def test_a_job_without_a_key_leaves_the_first_promotion_under_a_policy_to_others(
    workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = Keys(tmp_path, monkeypatch)
    runs = RunStore(DirectoryStore(workspace / "store"), "r9")
    manifest = committed(workspace, lora_files(workspace / "one"), spec=CHILD)
    sign_version(runs.store, manifest, "default", keys.ours)
    chat_rows(workspace / "train.jsonl", 9)
    keys.trust()
    with pytest.raises(Untrusted, match=r"no key to sign this one\. .* through the service"):
        Retraining(a_retrain(workspace), runs, 1).run()
    assert runs.store.head(runs.key(BASELINE_FILE)) is None


def test_a_run_under_a_policy_finds_its_own_unsigned_commit(
    better: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = Keys(tmp_path, monkeypatch)
    sign_version(better.store, resolve_adapter(better.store, "tiny@v1"), "default", keys.ours)
    keys.trust()
    decision = better.run(promote=False)
    assert (decision["event"], decision["adapter"]) == ("not_promoted", "tiny@v2")
