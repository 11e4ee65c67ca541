"""The expected speed of a run: from the spec, or from the last comparable run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.plan.estimate.speed import find_speed
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, SPEC, RunStore
from tests.tiny import tiny_spec

MODEL = Path("/made/up")


def make_spec(**changes: Any) -> RunSpec:
    return validate_spec(tiny_spec(MODEL, **changes))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def record_run(
    store: DirectoryStore, day: int, *, tokens: int = 768, name: str = "a", **spec: Any
) -> str:
    """A past run of 6 steps of 4 x 64 tokens at most, in 10 s."""
    run = f"{name}-2026010{day}-120000-0a1b"
    runs = RunStore(store, run)
    runs.write_text(SPEC, dump_spec(make_spec(**spec)))
    runs.write_json(LEDGER, {"tokens": tokens, "seconds": 10.0, "steps": 6})
    return run


def test_nobody_knows_without_a_past(store: DirectoryStore):
    assert find_speed(make_spec(), store) is None
    assert find_speed(make_spec(), None) is None


def test_the_last_run_of_its_kind_tells_speed_and_fill(store: DirectoryStore):
    record_run(store, 3, tokens=100, name="z", method={"kind": "lora"})
    run = record_run(store, 2)
    # Of another name, which sorts later, and of a day before.
    record_run(store, 1, tokens=500, name="zz")
    speed = find_speed(make_spec(), store)
    assert speed is not None
    assert (speed.tokens_per_second, speed.fill) == (76.8, 0.5)
    assert speed.source == f"measured in run {run}"


def test_what_the_spec_says_counts_before_the_past(store: DirectoryStore):
    record_run(store, 2)
    speed = find_speed(make_spec(cluster={"machine": {"tokens_per_second": 5.0}}), store)
    assert speed is not None
    assert (speed.tokens_per_second, speed.source, speed.fill) == (5.0, "set in the spec", 0.5)


OTHERS: dict[str, dict[str, Any]] = {
    "another base": {"model": {"path": "/another"}},
    "another method": {"method": {"kind": "lora"}},
    "other workers": {"cluster": {"workers": 2}},
    "other machines": {"cluster": {"machine": {"kind": "big"}}},
    "longer rows": {"data": {"max_length": 128}},
    "another type": {"model": {"dtype": "bfloat16"}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_runs_of_another_kind_tell_nothing(store: DirectoryStore, other: dict[str, Any]):
    record_run(store, 1, **other)
    assert find_speed(make_spec(), store) is None
    assert find_speed(make_spec(**other), store) is not None


def test_unreadable_run_files_are_skipped(store: DirectoryStore):
    run = record_run(store, 1)
    for name, text in (("b", "{"), ("c", "[]"), ("d", '{"tokens": 1, "seconds": 0, "steps": 1}')):
        runs = RunStore(store, f"{name}-20260109-120000-0a1b")
        runs.write_text(SPEC, dump_spec(make_spec()))
        runs.write_text(LEDGER, text)
    speed = find_speed(make_spec(), store)
    assert speed is not None and run in speed.source
