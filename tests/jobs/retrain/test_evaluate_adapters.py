"""Adapters of every form, evaluated from the store on every sharding of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
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
Metrics = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("evaluation")
    tiny_chat_model(workspace / "model")
    tiny_encoder(workspace / "encoder")
    for name, rows in (("train", 40), ("eval", 9), ("previous", 5)):
        chat_rows(workspace / f"{name}.jsonl", rows)
        label_rows(workspace / f"classes.{name}.jsonl", rows)
    label_rows(workspace / "unknown.jsonl", 4, labels=("tepid", "cold"))
    train_all([TrainingCase(way, _spec(workspace, way)) for way in WAYS], 1)
    return workspace


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
        train={"steps": 4, "micro_batch_size": 2, "checkpoint_every": None},
    )
    return merge_spec(merge_spec(spec, WAYS[way]), changes)


def _evaluate_all(
    rank: int, world_size: int, cases: list[tuple[dict[str, Any], str]]
) -> list[Metrics]:

    return [_evaluate(rank, world_size, spec, previous) for spec, previous in cases]


def _evaluate(rank: int, world_size: int, raw: dict[str, Any], previous: str) -> Metrics:
    import torch

    from jobs.inspect.datasets.scan import scan_dataset
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.evaluate_adapters import evaluate_adapters
    from jobs.train.monitor.watchdog import Watchdog

    validated = validate_run(validate_spec(merge_spec(raw, {"cluster": {"workers": world_size}})))
    spec = validated.spec
    scan = scan_dataset(previous, spec.data.format, spec.model.task, "data.eval")
    request = validated.make_request("evaluation").for_evaluation(
        (f"{spec.name}@v1",), HeldOutRows(scan, previous)
    )
    context = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    runs = RunStore(open_store(spec.store), "evaluation")
    return evaluate_adapters(request, runs, context, Watchdog(rank, world_size, None))


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[tuple[str, str], Metrics]:
    """Evaluate every adapter with two workers on every sharding of the base."""
    cases = [(way, sharding) for way in WAYS for sharding in SHARDINGS]
    requests = [
        (
            _spec(folder, way, cluster={"sharding": sharding}),
            str(folder / ("classes.previous.jsonl" if way == "classes" else "previous.jsonl")),
        )
        for way, sharding in cases
    ]
    ranks = run_ranks(_evaluate_all, 2, 2, requests)
    assert ranks[0] == ranks[1]
    return dict(zip(cases, ranks[0], strict=True))


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_the_store_is_what_was_trained(way, sharding, folder, metrics):
    manifest = resolve_adapter(open_store(_spec(folder, way)["store"]), way)
    end = metrics[way, sharding][f"{way}@v1"][HELD_OUT]
    assert end["loss"] == pytest.approx(manifest.evaluation["end"]["loss"], rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_previous_rows_are_measured_on_their_own(way, metrics):
    sets = metrics[way, "replicate"][f"{way}@v1"]
    assert sets[PREVIOUS_EVAL]["loss"] != sets[HELD_OUT]["loss"]
    counted = "rows" if way == "classes" else "tokens"
    assert sets[PREVIOUS_EVAL][counted] < sets[HELD_OUT][counted]


def test_rows_with_labels_that_the_adapter_does_not_know_are_not_measured(folder):
    cases = [(_spec(folder, "classes"), str(folder / "unknown.jsonl"))]
    (metrics,) = run_ranks(_evaluate_all, 1, 1, cases)[0]
    assert set(metrics["classes@v1"]) == {HELD_OUT}
