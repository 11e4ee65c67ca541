"""Which adapter is current, whether the data is new, and what was tried before."""

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


def _snapshot(workspace: Path, start: str = "current", **spec: Any) -> Baseline | NoNewData:
    retrain_spec = a_retrain(workspace, {"start": start}, **spec)
    rows = scan_dataset(retrain_spec.data.train, "chat", "causal-lm", "data.train")
    return snapshot_state(
        DirectoryStore(workspace / "store"), retrain_spec.training, start, str(rows.sha256)
    )


@pytest.fixture
def first(workspace: Path) -> Path:
    """Return a workspace with tiny@v1, trained on its eight rows."""
    committed(workspace, lora_files(workspace / "one"))
    return workspace


def test_without_an_adapter_everything_is_new_and_starts_from_scratch(workspace):
    state = _snapshot(workspace)
    assert isinstance(state, Baseline)
    assert state == Baseline(train_sha256=state.train_sha256)
    assert (state.current, state.start, state.newest_version) == (None, None, 0)


def test_rows_that_the_current_adapter_was_trained_on_are_not_new(first):
    state = _snapshot(first)
    assert isinstance(state, NoNewData)
    assert "tiny@v1 was trained on these 8 rows" in state.reason


def test_training_on_new_rows_starts_from_the_current_adapter(first):
    chat_rows(first / "train.jsonl", 9)
    state = _snapshot(first)
    assert isinstance(state, Baseline)
    assert (state.current, state.start) == ("tiny@v1", "tiny@v1")
    assert (state.pointer_move, state.newest_version) == (None, 1)


def test_the_current_adapter_is_the_last_one_promoted(first):
    chat_rows(first / "train.jsonl", 9)
    committed(first, lora_files(first / "two"), run="r2")
    promote(DirectoryStore(first / "store"), "tiny", 1)
    chat_rows(first / "train.jsonl", 10)
    state = _snapshot(first)
    assert isinstance(state, Baseline)
    assert (state.current, state.pointer_move, state.newest_version) == ("tiny@v1", 1, 2)


@pytest.mark.parametrize(("start", "label"), [("scratch", None), ("v1", "tiny@v1")])
def test_training_may_start_from_another_version_or_from_scratch(start, label, first):
    chat_rows(first / "train.jsonl", 9)
    committed(first, lora_files(first / "two"), run="r2")
    chat_rows(first / "train.jsonl", 10)
    state = _snapshot(first, start)
    assert isinstance(state, Baseline)
    assert (state.current, state.start) == ("tiny@v2", label)


@pytest.mark.parametrize("start", ["v7"])
def test_a_missing_version_is_reported(start, workspace, first):
    chat_rows(first / "train.jsonl", 9)
    with pytest.raises(NotInStore, match="tiny@v7"):
        _snapshot(first, start)


def test_a_version_of_a_name_without_any_is_reported(workspace):
    with pytest.raises(NotInStore, match="tiny@v7"):
        _snapshot(workspace, "v7")


def test_what_was_tried_and_not_promoted_is_not_tried_again(first):
    promote(DirectoryStore(first / "store"), "tiny", 1)
    chat_rows(first / "train.jsonl", 9)
    child = {"method": {"kind": "lora"}}
    committed(first, lora_files(first / "two"), run="r2", spec=child, parent="tiny@v1")
    state = _snapshot(first)
    assert isinstance(state, NoNewData)
    assert state.adapter == "tiny@v2"
    # Another spec, or another start, is another try.
    assert isinstance(_snapshot(first, train={"learning_rate": 1e-3}), Baseline)
    assert isinstance(_snapshot(first, "scratch"), Baseline)


@pytest.mark.parametrize(
    ("kind", "start", "trained_kind"),
    [("slora", "tiny@v1", "lora"), ("slora", None, "slora"), ("sparse", "tiny@v1", "sparse")],
)
def test_slora_continues_from_an_adapter_as_lora(kind, start, trained_kind, workspace):
    spec = a_retrain(workspace, method={"kind": kind}).training
    assert make_training_spec(spec, start).method.kind == trained_kind
