"""Adapters of every form measured as they lie in the store, on every holding of the base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import resolve_adapter
from jobs.store.base import open_store
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL, HeldOutRows
from tests.ranks import run_ranks
from tests.tiny import chat_rows, label_rows, merge_spec, tiny_chat_model, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

WAYS: dict[str, dict[str, Any]] = {
    "slora": {"method": {"kind": "slora"}},
    "keep": {"method": {"kind": "slora", "handoff": {"residual": "keep"}}},
    "sparse": {"method": {"kind": "sparse"}},
    "full": {"method": {"kind": "full"}},
    "classes": {
        "model": {"task": "sequence-classification"}, "method": {"kind": "lora"},
        "data": {"format": "classification"},
    },
}  # fmt: skip
SHARDINGS = ("replicate", "node", "cluster")
Found = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("judged")
    tiny_chat_model(made / "model")
    tiny_encoder(made / "encoder")
    for name, rows in (("train", 40), ("eval", 9), ("old", 5)):
        chat_rows(made / f"{name}.jsonl", rows)
        label_rows(made / f"classes.{name}.jsonl", rows)
    label_rows(made / "unknown.jsonl", 4, labels=("tepid", "cold"))
    train_all([TrainingCase(way, _spec(made, way)) for way in WAYS], 1)
    return made


def _spec(folder: Path, way: str, **changes: Any) -> dict[str, Any]:
    prefix, model = ("classes.", "encoder") if way == "classes" else ("", "model")
    spec = tiny_spec(
        folder,
        name=way,
        model={"path": str(folder / model)},
        data={
            "train": str(folder / f"{prefix}train.jsonl"),
            "eval": str(folder / f"{prefix}eval.jsonl"),
        },
        train={"steps": 4, "checkpoint_every": None},
    )
    return merge_spec(merge_spec(spec, WAYS[way]), changes)


def _all(rank: int, world_size: int, asked: list[tuple[dict[str, Any], str]]) -> list[Found]:
    from jobs.train.comm.deepspeed_comm import init_deepspeed

    init_deepspeed("gloo")
    return [_judged(rank, world_size, spec, old) for spec, old in asked]


def _judged(rank: int, world_size: int, raw: dict[str, Any], old: str) -> Found:
    import torch

    from jobs.inspect.datasets.scan import scan_dataset
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.evaluate_adapters import evaluate_adapters
    from jobs.train.monitor.watchdog import Watchdog

    checked = validate_run(validate_spec(merge_spec(raw, {"cluster": {"workers": world_size}})))
    spec = checked.spec
    request = dataclasses.replace(
        checked.make_request("judging"),
        adapters=(f"{spec.name}@v1",),
        previous_eval=HeldOutRows(scan_dataset(old, spec.data.format, spec.model.task, "data.eval"), old),
    )
    team = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    runs = RunStore(open_store(spec.store), "judging")
    return evaluate_adapters(request, runs, team, Watchdog(rank, world_size, None))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[tuple[str, str], Found]:
    """Two workers, every way, every holding of the base."""
    cases = [(way, sharding) for way in WAYS for sharding in SHARDINGS]
    asked = [
        (
            _spec(folder, way, cluster={"sharding": sharding}),
            str(folder / ("classes.old.jsonl" if way == "classes" else "old.jsonl")),
        )
        for way, sharding in cases
    ]
    ranks = run_ranks(_all, 2, 2, asked)
    assert ranks[0] == ranks[1]
    return dict(zip(cases, ranks[0], strict=True))


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_the_store_is_what_was_trained(way, sharding, folder, found):
    manifest = resolve_adapter(open_store(_spec(folder, way)["store"]), way)
    measured = found[way, sharding][f"{way}@v1"][HELD_OUT]
    assert measured["loss"] == pytest.approx(manifest.evaluation["end"]["loss"], rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_old_rows_are_others(way, found):
    sets = found[way, "replicate"][f"{way}@v1"]
    assert sets[PREVIOUS_EVAL]["loss"] != sets[HELD_OUT]["loss"]
    counted = "rows" if way == "classes" else "tokens"
    assert sets[PREVIOUS_EVAL][counted] < sets[HELD_OUT][counted]


def test_rows_with_labels_that_it_does_not_know_are_left_out(folder):
    asked = [(_spec(folder, "classes"), str(folder / "unknown.jsonl"))]
    (found,) = run_ranks(_all, 1, 1, asked)[0]
    assert set(found["classes@v1"]) == {HELD_OUT}
