"""A retraining that leaves its dtype to the hardware takes that of the adapter in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.plan.dtype_choice import DtypeChoice
from jobs.plan.settled_dtype import read_settled_dtype, record_settled_dtype
from jobs.retrain.inherit_dtype import find_inherited_dtype
from jobs.retrain.pipeline import Retraining
from jobs.store.adapters.operations import promote
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.retrain_plan import plan_retraining
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain
from tests.tiny import chat_rows

AUTO: dict[str, Any] = {"model": {"dtype": "auto"}}
BFLOAT16: dict[str, Any] = {"model": {"dtype": "bfloat16"}}


@pytest.fixture
def store(workspace: Path) -> DirectoryStore:
    """Return a store whose tiny@v1 was trained in bfloat16; data.train has grown since."""
    committed(workspace, lora_files(workspace / "one"), spec=BFLOAT16, base_dtype="bfloat16")
    store = DirectoryStore(workspace / "store")
    promote(store, "tiny", 1)
    chat_rows(workspace / "train.jsonl", 9)
    return store


def test_the_dtype_is_that_of_the_current_adapter(workspace: Path, store: DirectoryStore):
    choice = find_inherited_dtype(a_retrain(workspace, **AUTO), store)
    assert choice == DtypeChoice("bfloat16", is_auto=True, reason="tiny@v1 was trained in it")


def test_a_dtype_in_the_spec_is_kept(workspace: Path, store: DirectoryStore):
    assert find_inherited_dtype(a_retrain(workspace), store) is None


def test_the_manifest_of_an_earlier_release_tells_nothing(workspace: Path):
    committed(workspace, lora_files(workspace / "one"))
    spec = a_retrain(workspace, **AUTO)
    assert find_inherited_dtype(spec, DirectoryStore(workspace / "store")) is None


def test_without_an_adapter_there_is_nothing_to_inherit(workspace: Path):
    spec = a_retrain(workspace, **AUTO)
    assert find_inherited_dtype(spec, DirectoryStore(workspace / "store")) is None


def test_the_plan_is_made_in_the_inherited_dtype(workspace: Path, store: DirectoryStore):
    checked, _ = plan_retraining(a_retrain(workspace, **AUTO))
    assert checked.plan.dtype.reason == "tiny@v1 was trained in it"
    assert checked.spec.model.dtype == "bfloat16"


def test_rows_that_the_same_training_has_seen_are_recognised(
    workspace: Path, store: DirectoryStore
):
    """The digest of a spec includes its dtype."""
    committed(
        workspace,
        lora_files(workspace / "two"),
        spec={**BFLOAT16, "method": {"kind": "lora"}},
        base_dtype="bfloat16",
        parent="tiny@v1",
        run="r2",
    )
    runs = RunStore(store, "r3")
    Retraining(a_retrain(workspace, **AUTO), runs, 1).run()
    events, _ = runs.events.tail(0)
    assert [event["event"] for event in events] == ["dtype_settled", "no_new_data"]
    assert "tiny@v2 was trained on these rows with this spec" in events[-1]["why"]


def test_a_later_attempt_keeps_what_the_first_one_inherited(workspace: Path, store: DirectoryStore):
    runs = RunStore(store, "r3")
    first = DtypeChoice("float32", is_auto=True, reason="tiny@v0 was trained in it")
    record_settled_dtype(first, runs)
    spec = Retraining(a_retrain(workspace, **AUTO), runs, 2)._inherit_dtype()
    assert (spec.model.dtype, read_settled_dtype(runs)) == ("float32", first)
