"""A retraining between its seams, without Ray: what is there already is gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, SupersededAttempt
from jobs.retrain.pipeline import Retraining
from jobs.retrain.retrain_artifacts import BASELINE_FILE, pin_spec
from jobs.store.adapters.operations import promote, read_pointer, resolve_adapter, rollback
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import RunStore
from jobs.train.request import EVALUATION_FILE, HELD_OUT, PREVIOUS_EVAL
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain
from tests.tiny import chat_rows

RUN = "r2"
CHILD: dict[str, Any] = {"method": {"kind": "lora"}}


class Scene:
    """tiny@v1 is current; the run r2 has looked, committed tiny@v2 from nine rows, and measured."""

    def __init__(self, place: Path, new: float, old: float) -> None:
        self.place, self.store = place, DirectoryStore(place / "store")
        self.runs = RunStore(self.store, RUN)
        first = committed(place, lora_files(place / "one"))
        promote(self.store, "tiny", 1)
        self.runs.write_json(BASELINE_FILE, {
            "current": "tiny@v1", "move": 1, "start": "tiny@v1", "newest": 1,
            "train_sha256": first.data.train_sha256,
        })  # fmt: skip
        chat_rows(place / "train.jsonl", 9)
        self.made = committed(place, lora_files(place / "two"), run=RUN, spec=CHILD)
        self.judged(new, old)

    def judged(self, new: float, old: float) -> None:
        """As the workers would have left it."""
        held = resolve_adapter(self.store, "tiny@v1").data.eval_sha256
        figures = {"tiny@v2": new, "tiny@v1": old}
        self.runs.write_json(EVALUATION_FILE, {
            "asked": {"adapters": list(figures), HELD_OUT: held, PREVIOUS_EVAL: [held, None, None]},
            "found": {
                label: {rows: {"loss": loss} for rows in (HELD_OUT, PREVIOUS_EVAL)}
                for label, loss in figures.items()
            },
        })  # fmt: skip

    def run(self, attempt: int = 1, **section: Any) -> dict[str, Any]:
        """The run's last event."""
        Retraining(a_retrain(self.place, section), self.runs, attempt).run()
        return self.runs.events.tail(0)[0][-1]

    @property
    def current(self) -> int:
        pointer = read_pointer(self.store, "tiny")
        assert pointer is not None
        return pointer.version


@pytest.fixture
def better(place: Path) -> Scene:
    return Scene(place, new=1.0, old=2.0)


def test_an_attempt_after_a_death_behind_the_judging_decides(better):
    assert better.run()["event"] == "promoted"
    assert better.current == 2


def test_each_attempt_decides_the_same_and_moves_once(better):
    assert [better.run(attempt)["event"] for attempt in (1, 2, 3)] == ["promoted"] * 3
    pointer = read_pointer(better.store, "tiny")
    assert pointer is not None
    assert [move.version for move in pointer.moves] == [1, 2]


def test_a_rollback_stands(better):
    better.run()
    rollback(better.store, "tiny")
    better.run(2)
    assert better.current == 1


def test_what_is_worse_is_kept_with_both_numbers(place):
    scene = Scene(place, new=2.5, old=2.0)
    kept = scene.run()
    assert (kept["event"], kept["adapter"], scene.current) == ("kept", "tiny@v2", 1)
    assert "2.5000, the limit is 2.0000" in kept["why"]


def test_a_gate_that_holds_promotes_nothing_where_that_was_not_asked(better):
    kept = better.run(promote=False)
    assert (kept["event"], better.current) == ("kept", 1)
    assert "the gate holds" in kept["why"]


def test_what_somebody_promoted_meanwhile_is_not_pushed_aside(better):
    committed(better.place, lora_files(better.place / "hand"), run="hand")
    promote(better.store, "tiny", 3)
    kept = better.run()
    assert (kept["event"], better.current) == ("kept", 3)
    assert "current moved to v3 meanwhile" in kept["why"]


def test_an_old_attempt_does_not_promote_once_a_later_one_has_begun(better):
    with Heartbeat(better.runs, 2):
        pass
    with pytest.raises(SupersededAttempt, match="attempt 1 was replaced"):
        better.run(1)
    assert better.current == 1
    assert better.run(2)["event"] == "promoted"


def test_old_rows_that_are_gone_are_told_in_the_gate(better):
    spec = better.place / "store/runs/r1/spec.yaml"
    spec.unlink()
    told = json.loads((better.place / "store/runs/r2" / EVALUATION_FILE).read_text())
    told["asked"][PREVIOUS_EVAL] = None
    better.runs.write_json(EVALUATION_FILE, told)
    better.run()
    gate = next(e for e in better.runs.events.tail(0)[0] if e["event"] == "gate")
    assert any("files of run r1" in line["asked"] for line in gate["lines"])


def test_nothing_new_leaves_the_name_as_it_is(place):
    committed(place, lora_files(place / "one"))
    runs = RunStore(DirectoryStore(place / "store"), "r9")
    Retraining(a_retrain(place), runs, 1).run()
    assert [event["event"] for event in runs.events.tail(0)[0]] == ["nothing new"]
    assert read_pointer(runs.store, "tiny") is None
    assert runs.store.head(runs.key(BASELINE_FILE)) is None


def test_what_does_not_fit_is_refused_before_ray_and_settles_the_name(place):
    committed(place, lora_files(place / "one", rank=4), spec=CHILD)
    chat_rows(place / "train.jsonl", 9)
    runs = RunStore(DirectoryStore(place / "store"), "r9")
    with pytest.raises(InputError, match=r"method\.rank: 2, while the factors of tiny@v1 have 4"):
        Retraining(a_retrain(place), runs, 1).run()
    pointer = read_pointer(runs.store, "tiny")
    assert pointer is not None
    assert pointer.version == 1


def test_another_base_is_refused_with_both_ways_out(place):
    committed(place, lora_files(place / "one"), spec=CHILD, base="b" * 64)
    chat_rows(place / "train.jsonl", 9)
    runs = RunStore(DirectoryStore(place / "store"), "r9")
    refused = r"model\.path: .*another base.* Or use retrain\.start: scratch"
    with pytest.raises(InputError, match=refused):
        Retraining(a_retrain(place), runs, 1).run()


def test_a_run_that_goes_on_must_be_asked_the_same(place):
    runs = RunStore(DirectoryStore(place / "store"), "r9")
    pin_spec(a_retrain(place), runs)
    pin_spec(a_retrain(place), runs)
    with pytest.raises(InputError, match="r9 is a retraining with a different spec"):
        pin_spec(a_retrain(place, {"promote": False}), runs)
