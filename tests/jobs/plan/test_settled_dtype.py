"""A run settles its dtype once: each attempt uses what the first one recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.plan.dtype_choice import DtypeChoice
from jobs.plan.handover import validate_or_reuse, write_validated
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.plan.settled_dtype import (
    DTYPE_FILE,
    apply_dtype,
    read_settled_dtype,
    record_settled_dtype,
)
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.tiny import chat_rows, hollow_model, tiny_spec

FAST = DtypeChoice("bfloat16", is_auto=True, reason="4 x", float32_s=4.0, bfloat16_s=1.0)
SLOW = DtypeChoice("float32", is_auto=True, reason="1 x", float32_s=1.0, bfloat16_s=1.0)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    return validate_spec(tiny_spec(tmp_path, model={"dtype": "auto"}))


@pytest.fixture
def runs(spec: RunSpec) -> RunStore:
    return RunStore(open_store(spec.store), "tiny-20260101-000000-0a1b")


def test_the_first_record_counts(runs: RunStore):
    assert read_settled_dtype(runs) is None
    assert record_settled_dtype(FAST, runs) == FAST
    assert record_settled_dtype(SLOW, runs) == FAST == read_settled_dtype(runs)
    events, _ = runs.events.tail(0)
    (event,) = events
    assert (event["event"], event["dtype"], event["float32_s"]) == ("dtype_settled", "bfloat16", 4)


def test_half_a_record_is_replaced(runs: RunStore):
    runs.write_text(DTYPE_FILE, '{"dtype": "bflo')
    assert record_settled_dtype(SLOW, runs) == SLOW == read_settled_dtype(runs)


def test_the_plan_follows_the_settled_dtype(spec: RunSpec):
    validated = validate_run(spec, quick=True)
    memory = {}
    for choice in (FAST, SLOW):
        settled = apply_dtype(validated, choice)
        assert (settled.plan.dtype, settled.spec.model.dtype) == (choice, choice.dtype)
        assert settled.plan.estimate
        memory[choice.dtype] = settled.plan.estimate.selected.memory.peak
    assert memory["bfloat16"] < memory["float32"]


@pytest.mark.parametrize("choice", [FAST, SLOW])
def test_a_job_reuses_the_validation_of_a_command_that_chose_a_dtype(
    spec: RunSpec, runs: RunStore, choice: DtypeChoice
):
    validated = apply_dtype(validate_run(spec), choice)
    # A note shows that the plan is the one that was handed over.
    noted = replace(validated, plan=replace(validated.plan, notes=("handed over",)))
    write_validated(noted, runs)
    reused: ValidatedRun = validate_or_reuse(spec, runs.run_id)
    assert (reused.plan.notes, reused.plan.dtype) == (("handed over",), choice)
    assert reused.spec.model.dtype == choice.dtype
