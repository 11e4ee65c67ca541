"""The machines of a cluster agree on one dtype, whatever each of them would choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.plan.dtype_choice import DtypeChoice
from jobs.plan.preflight import validate_run
from jobs.plan.settled_dtype import record_settled_dtype
from jobs.spec.load import validate_spec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.cluster.settle_dtype import merge_choices, settle_dtype
from tests.tiny import chat_rows, hollow_model, tiny_spec

FAST = DtypeChoice("bfloat16", True, "4.0 x faster than float32 here", 4.0, 1.0)
FASTER = DtypeChoice("bfloat16", True, "6.0 x faster than float32 here", 6.0, 1.0)
SLOW = DtypeChoice("float32", True, "bfloat16 is only 1.2 x as fast here", 1.2, 1.0)
GPU = DtypeChoice("bfloat16", True, "GPUs compute it faster than float32")


def test_the_slowest_machine_speaks_for_all():
    merged = merge_choices({"a": FASTER, "b": FAST})
    assert (merged.dtype, merged.speedup) == ("bfloat16", 4.0)
    assert merged.reason == "4.0 x faster than float32 on the slowest of 2 machines"


def test_one_machine_without_bfloat16_is_enough_for_float32():
    merged = merge_choices({"a": FAST, "b": SLOW})
    assert (merged.dtype, merged.reason) == ("float32", f"b: {SLOW.reason}")


def test_a_machine_that_does_not_answer_is_not_trusted_with_bfloat16():
    merged = merge_choices({"a": FAST, "b": None})
    assert (merged.dtype, merged.is_auto, merged.reason) == ("float32", True, "b: no answer")


def test_a_single_machine_speaks_for_itself():
    assert merge_choices({"a": FAST}) == FAST
    assert merge_choices({"a": GPU, "b": GPU}) == GPU


@pytest.mark.parametrize("choice", [FAST, SLOW])
def test_a_later_attempt_takes_the_recorded_dtype_and_asks_no_machine(
    tmp_path: Path, choice: DtypeChoice
):
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    spec = validate_spec(tiny_spec(tmp_path, model={"dtype": "auto"}))
    runs = RunStore(open_store(spec.store), "tiny-20260101-000000-0a1b")
    record_settled_dtype(choice, runs)
    # No Ray is connected here, which it would have to ask.
    settled = settle_dtype(validate_run(spec, quick=True), spec, runs)
    assert (settled.plan.dtype, settled.spec.model.dtype) == (choice, choice.dtype)
