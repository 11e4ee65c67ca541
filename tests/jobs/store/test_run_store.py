"""Runs in the store: their ids and the keys of their files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from jobs.errors import InputError, NotInStore
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, PLAN, SPEC, RunStore, list_runs, make_run_id
from tests.jobs.store.builders import DyingStore

NOON = datetime(2026, 1, 2, 12, 3, 4, tzinfo=UTC)


def test_a_run_id_consists_of_name_time_and_four_digits():
    assert re.fullmatch(r"chat-20260102-120304-[0-9a-f]{4}", make_run_id("chat", NOON))
    zone = NOON.astimezone(timezone(timedelta(hours=-11)))
    assert make_run_id("chat", zone).startswith("chat-20260102-120304-")


def test_runs_of_the_same_second_have_different_ids():
    assert len({make_run_id("chat", NOON) for _ in range(20)}) > 15


def test_the_longest_name_makes_a_valid_run_id(store: DirectoryStore):
    RunStore(store, make_run_id("a" * 63, NOON)).write_text(SPEC, "name: x\n")
    assert len(list_runs(store)) == 1


def test_files_have_the_keys_that_the_design_names(store: DirectoryStore):
    run = RunStore(store, "r1")
    run.write_text(SPEC, "name: chat\n")
    run.write_json(PLAN, {"steps": 60})
    run.write_json(LEDGER, {"tokens": 1})
    run.events.append({"kind": "started"})
    run.metrics.append({"loss": 1.5})
    store.put(run.checkpoint_key(20, "state.safetensors"), b"")
    assert list(store.list("")) == [
        "runs/r1/checkpoints/20/state.safetensors",
        "runs/r1/events.jsonl",
        "runs/r1/ledger.json",
        "runs/r1/metrics.jsonl",
        "runs/r1/plan.json",
        "runs/r1/spec.yaml",
    ]
    assert run.read_text(SPEC) == "name: chat\n"
    assert run.read_json(PLAN) == {"steps": 60}
    assert run.events.tail()[0] == [{"kind": "started"}]


def test_a_file_is_overwritten_by_a_later_attempt(store: DirectoryStore):
    run = RunStore(store, "r1")
    run.write_json(PLAN, {"steps": 60})
    run.write_json(PLAN, {"steps": 40})
    assert run.read_json(PLAN) == {"steps": 40}
    with pytest.raises(NotInStore):
        run.read_json(LEDGER)


def test_a_file_that_no_other_program_could_read_is_not_written(store: DirectoryStore):
    with pytest.raises(ValueError, match="JSON compliant"):
        RunStore(store, "r1").write_json(LEDGER, {"loss": float("nan")})


def test_checkpoints_are_listed_in_the_order_of_steps(store: DirectoryStore):
    run = RunStore(store, "r1")
    for step in (100, 20, 3):
        store.put(run.checkpoint_key(step, "a"), b"")
        store.put(run.checkpoint_key(step, "b"), b"")
    store.put("runs/r1/checkpoints/latest/a", b"")
    store.put("runs/r10/checkpoints/7/a", b"")
    assert run.list_checkpoint_steps() == [3, 20, 100]


def test_a_run_without_a_spec_is_not_listed(store: DirectoryStore):
    RunStore(store, "r2").write_text(SPEC, "")
    RunStore(store, "r1").write_text(SPEC, "")
    RunStore(store, "r3").events.append({})
    store.put("runs/r4/checkpoints/spec.yaml", b"")
    assert list_runs(store) == ["r1", "r2"]


@pytest.mark.parametrize(
    "run_id", ["", "..", "../x", "a/b", "/a", "a\n", "a\0", ".a", "-a", "a" * 129, "\x1b[2J"]
)
def test_an_invalid_run_id_is_refused_with_a_printable_message(run_id: str, store: DirectoryStore):
    with pytest.raises(InputError) as caught:
        RunStore(store, run_id)
    assert str(caught.value).isprintable()


def test_a_store_that_cannot_append_has_journals_too(store: DirectoryStore):
    runs = RunStore(DyingStore(store), "r1")
    runs.events.append({"kind": "started"})
    runs.metrics.append({"loss": 1.5})
    assert runs.events.tail()[0] == [{"kind": "started"}]
    assert runs.metrics.tail()[0] == [{"loss": 1.5}]
