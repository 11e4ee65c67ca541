"""The machines of a cluster agree on one dtype, whatever each of them would choose."""

from __future__ import annotations

from jobs.plan.dtype_choice import DtypeChoice
from jobs.train.cluster.settle_dtype import merge_choices

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
