"""The first look: what is current, what is new, and what has been tried before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import NotInStore
from jobs.inspect.datasets.scan import scan_dataset
from jobs.retrain.detect import NoNewData, make_training_spec, snapshot_state
from jobs.retrain.retrain_artifacts import Baseline
from jobs.store.adapters.operations import promote
from jobs.store.local import DirectoryStore
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain
from tests.tiny import chat_rows


def _look(place: Path, start: str = "current", **spec: Any) -> Baseline | NoNewData:
    asked = a_retrain(place, {"start": start}, **spec)
    rows = scan_dataset(asked.data.train, "chat", "causal-lm", "data.train")
    return snapshot_state(DirectoryStore(place / "store"), asked.training, start, str(rows.sha256))


@pytest.fixture
def first(place: Path) -> Path:
    """tiny@v1, trained on the eight rows that are there."""
    committed(place, lora_files(place / "one"))
    return place


def test_without_an_adapter_everything_is_new_and_starts_from_scratch(place):
    found = _look(place)
    assert isinstance(found, Baseline)
    assert (found.current, found.pointer_move, found.start, found.newest_version) == (
        None,
        None,
        None,
        0,
    )


def test_rows_that_the_current_one_was_trained_on_are_nothing_new(first):
    found = _look(first)
    assert isinstance(found, NoNewData)
    assert "tiny@v1 was trained on these 8 rows" in found.reason


def test_rows_that_came_are_learnt_from_the_current_one_on(first):
    chat_rows(first / "train.jsonl", 9)
    found = _look(first)
    assert isinstance(found, Baseline)
    assert (found.current, found.start, found.pointer_move, found.newest_version) == (
        "tiny@v1",
        "tiny@v1",
        None,
        1,
    )


def test_what_is_current_is_what_was_promoted_last(first):
    chat_rows(first / "train.jsonl", 9)
    committed(first, lora_files(first / "two"), run="r2")
    promote(DirectoryStore(first / "store"), "tiny", 1)
    chat_rows(first / "train.jsonl", 10)
    found = _look(first)
    assert isinstance(found, Baseline)
    assert (found.current, found.pointer_move, found.newest_version) == ("tiny@v1", 1, 2)


@pytest.mark.parametrize(("start", "begins"), [("scratch", None), ("v1", "tiny@v1")])
def test_it_may_start_elsewhere_than_at_the_current_one(start, begins, first):
    chat_rows(first / "train.jsonl", 9)
    committed(first, lora_files(first / "two"), run="r2")
    chat_rows(first / "train.jsonl", 10)
    found = _look(first, start)
    assert isinstance(found, Baseline)
    assert (found.current, found.start) == ("tiny@v2", begins)


@pytest.mark.parametrize("start", ["v7"])
def test_a_version_that_is_not_there_is_told(start, place, first):
    chat_rows(first / "train.jsonl", 9)
    with pytest.raises(NotInStore, match="tiny@v7"):
        _look(first, start)


def test_a_version_of_a_name_without_any_is_told(place):
    with pytest.raises(NotInStore, match="tiny@v7"):
        _look(place, "v7")


def test_what_was_tried_and_not_promoted_is_not_tried_again(first):
    promote(DirectoryStore(first / "store"), "tiny", 1)
    chat_rows(first / "train.jsonl", 9)
    child = {"method": {"kind": "lora"}}
    committed(first, lora_files(first / "two"), run="r2", spec=child, parent="tiny@v1")
    found = _look(first)
    assert isinstance(found, NoNewData)
    assert found.adapter == "tiny@v2"
    # Another spec, or another start, is another try.
    assert isinstance(_look(first, train={"learning_rate": 1e-3}), Baseline)
    assert isinstance(_look(first, "scratch"), Baseline)


@pytest.mark.parametrize(
    ("kind", "start", "trains"),
    [("slora", "tiny@v1", "lora"), ("slora", None, "slora"), ("sparse", "tiny@v1", "sparse")],
)
def test_only_what_goes_on_needs_no_sparse_stage(kind, start, trains, place):
    spec = a_retrain(place, method={"kind": kind}).training
    assert make_training_spec(spec, start).method.kind == trains
