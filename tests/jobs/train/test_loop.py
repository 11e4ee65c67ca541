"""Full trainings on real ranks: results that must not depend on how they were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.open import open_store
from slora.formats.peft import LoraAdapter, SparseAdapter, read_adapter
from slora.layers.lora import init_factors
from slora.layers.sparse import make_dense_delta
from tests.tiny import chat_rows, label_rows, merge_spec, tiny_chat_model, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, TrainingResult, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

DEATHS = {
    "inside the sparse stage": "step 4",
    "at the last sparse step": "step 6",
    "inside the low-rank stage": "step 15",
    "before the commit": "commit",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 9)
    (path / "encoder").mkdir()
    tiny_encoder(path / "encoder" / "model")
    label_rows(path / "encoder" / "train.jsonl", 60, ("a", "b", "c"))
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, TrainingResult]:
    """Run all trainings of this file: two groups of processes, and one more to resume a run."""
    results = {}
    for world_size in (1, 2):
        results.update(train_all(_make_case(folder, world_size), world_size))
    results.update(train_all([TrainingCase("moved", _make_spec(folder, name="moved"))], 1))
    return results


def _make_spec(folder: Path, **changes: Any) -> dict[str, Any]:
    spec = tiny_spec(
        folder,
        data={"eval": str(folder / "eval.jsonl")},
        train={"steps": 20, "micro_batch_size": 2, "weight_decay": 0.1, "checkpoint_every": 3},
        cluster={"sharding": "replicate"},
    )
    return merge_spec(spec, changes)


def _make_case(folder: Path, world_size: int) -> list[TrainingCase]:
    kinds = [
        TrainingCase(f"{kind} {sharding} {world_size}".replace(" ", "-"), _make_spec(
            folder, name=f"{kind}-{sharding}-{world_size}", method={"kind": kind},
            cluster={"sharding": sharding}),
            samples=world_size == 2 and kind in ("slora", "full"))
        for kind in ("slora", "sparse", "lora", "full")
        for sharding in ("replicate", "cluster")
        if sharding == "replicate" or kind == "slora"
    ]  # fmt: skip
    if world_size == 1:
        return [*kinds, *_make_resumed_cases(folder)]
    twice = TrainingCase("again", _make_spec(folder, name="again"))
    encoder = folder / "encoder"
    classifier = tiny_spec(
        encoder,
        name="sorter",
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval_fraction": 0.2},
        train={"steps": None, "epochs": 2},
    )
    narrow = [
        TrainingCase(f"narrow-{sharding}", _make_spec(
            folder, name=f"narrow-{sharding}", model={"dtype": "bfloat16"},
            cluster={"sharding": sharding}))
        for sharding in ("replicate", "cluster")
    ]  # fmt: skip
    # Dies on two workers; the fixture resumes it on one.
    moved = TrainingCase("moved", _make_spec(folder, name="moved"), dies="step 13")
    return [*kinds, *narrow, twice, TrainingCase("sorter", classifier), moved]


def _make_resumed_cases(folder: Path) -> list[TrainingCase]:
    """Return the cases of one worker alone."""
    frozen = _make_spec(
        folder,
        name="frozen",
        method={"kind": "lora"},
        train={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0},
        cluster={"sharding": "cluster"},
    )
    only_sparse = {"sparse_share": 1.0, "rank": 3}
    handed = {
        norm: _make_spec(
            folder, name=f"handed-{norm}", method={**only_sparse, "handoff": {"norm": norm}}
        )
        for norm in ("weights", "outputs", "loss")
    }
    deaths = []
    for seam, dies in DEATHS.items():
        run = seam.replace(" ", "-")
        spec = _make_spec(folder, name=run)
        deaths += [TrainingCase(f"{run}-died", {**spec, "name": f"{run}-died"}, dies=dies)]
    return [
        TrainingCase("frozen", frozen),
        *(TrainingCase(f"handed-{norm}", spec) for norm, spec in handed.items()),
        *deaths,
        *_make_stopped_cases(folder),
    ]


def _make_stopped_cases(folder: Path) -> list[TrainingCase]:
    """Return trainings that stop before their last step."""
    often = {"eval_every": 2}
    stops: dict[str, dict[str, Any]] = {
        "sated": {**often, "stop": {"target": 1e9}},
        "spent": {**often, "stop": {"tokens": 1}},
        "bored": {**often, "learning_rate": 1e-12, "stop": {"patience": 1}},
    }
    case = [
        TrainingCase(run, _make_spec(folder, name=run, train=train)) for run, train in stops.items()
    ]
    late = _make_spec(folder, name="sated-died", train=stops["sated"])
    return [*case, TrainingCase("sated-died", late, dies="commit")]


def _pull_adapter(folder: Path, name: str, tmp_path: Path) -> LoraAdapter | SparseAdapter:
    store = open_store(f"file://{folder / 'store'}")
    return read_adapter(pull(store, resolve_adapter(store, name), tmp_path / name))


@pytest.mark.parametrize("kind", ["slora", "sparse", "lora", "full"])
def test_one_worker_and_two_give_the_same_losses(results, kind):
    single, two = results[f"{kind}-replicate-1"].losses, results[f"{kind}-replicate-2"].losses
    assert len(single) == len(two) == 20
    assert two == pytest.approx(single, rel=1e-4)
    assert min(single[-3:]) < single[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sharded_base_gives_the_same_losses_as_a_replicated_one(results, workers):
    sharded = results[f"slora-cluster-{workers}"]
    assert sharded.losses == pytest.approx(results["slora-replicate-1"].losses, rel=1e-4)


def test_evaluations_do_not_depend_on_the_number_of_workers(results):
    single, two = results["slora-replicate-1"].evaluations, results["slora-replicate-2"].evaluations
    assert list(single) == list(two) == ["before", "sparse", "handoff", "end"]
    for at in single:
        assert two[at]["loss"] == pytest.approx(single[at]["loss"], rel=1e-4)
    assert single["end"]["loss"] < single["before"]["loss"]


@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_base_is_bit_equal_after_both_stages_with_weight_decay_on(results, sharding, workers):
    assert results[f"slora-{sharding}-{workers}"].base_untouched


def test_the_check_of_the_base_can_fail(results):
    assert not results["full-replicate-1"].base_untouched


def test_every_rank_has_the_same_masks_and_layers_of_one_shape_have_different_ones(results):
    first, second = results["slora-replicate-2"].masks
    assert first == second
    assert results["slora-replicate-1"].masks[0] == first
    assert len(set(first.values())) == len(first) == 14


def test_the_same_spec_and_seed_give_bit_equal_adapters(results):
    assert results["again"].files["adapter_model.safetensors"]
    assert results["again"].files == results["slora-replicate-2"].files


def test_a_is_random_if_the_base_is_sharded_too(results, folder, tmp_path):
    adapter = _pull_adapter(folder, "frozen", tmp_path)
    assert isinstance(adapter, LoraAdapter)
    for name, (a_RI, b_OR) in adapter.factors.items():
        shape = (b_OR.shape[0], a_RI.shape[1])
        fresh, _ = init_factors(seed=0, name=name, shape=shape, rank=2)
        torch.testing.assert_close(a_RI, fresh)
        assert b_OR.abs().max() < 1e-10


def test_no_low_rank_step_leaves_exactly_the_best_approximation(results, folder, tmp_path):
    handed, values = (
        _pull_adapter(folder, name, tmp_path) for name in ("handed-weights", "sparse-replicate-1")
    )
    assert isinstance(handed, LoraAdapter)
    assert isinstance(values, SparseAdapter)
    for name, mask in values.masks.items():
        delta = make_dense_delta(values.values[name], mask).double()
        a_RI, b_OR = handed.factors[name]
        residual = (delta - handed.scale * b_OR.double() @ a_RI.double()).norm()
        tail = torch.linalg.svdvals(delta)[3:].square().sum().sqrt()
        torch.testing.assert_close(residual, tail, rtol=1e-5, atol=1e-6)
    assert 0 < results["handed-weights"].ledger["handoff_energy_share"] < 1


def test_the_norm_of_the_handoff_decides_what_the_factors_keep(results):
    ledgers = {norm: results[f"handed-{norm}"].ledger for norm in ("weights", "outputs", "loss")}
    assert "handoff_output_share" not in ledgers["weights"]
    assert 0 < ledgers["loss"]["handoff_output_share"] < ledgers["outputs"]["handoff_output_share"]
    assert ledgers["outputs"]["handoff_energy_share"] < ledgers["weights"]["handoff_energy_share"]


@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
def test_a_bfloat16_base_learns_as_a_float32_one_does_to_its_precision(
    results, folder, tmp_path, sharding
):
    narrow, wide = results[f"narrow-{sharding}"], results["slora-replicate-2"]
    # bfloat16 has 8 bits: a loss of 5.5 is known to about 0.02.
    assert narrow.losses == pytest.approx(wide.losses, abs=0.05)
    assert narrow.base_untouched
    adapter = _pull_adapter(folder, f"narrow-{sharding}", tmp_path)
    assert isinstance(adapter, LoraAdapter)
    assert {a_RI.dtype for a_RI, _ in adapter.factors.values()} == {torch.float32}


def test_the_ledger_counts_what_the_adapter_holds(results, folder, tmp_path):
    adapter = _pull_adapter(folder, "sparse-replicate-1", tmp_path)
    assert isinstance(adapter, SparseAdapter)
    held = sum(values.numel() for values in adapter.values.values())
    assert results["sparse-replicate-1"].ledger["sparse_trainable"] == held


def test_a_classifier_trains_full_epochs_and_its_head_is_published(results, folder, tmp_path):
    sorter = results["sorter"]
    rows = sorter.evaluations["end"]["rows"]
    # Two epochs of the rows that are not held out, four a step, the last step filled up.
    assert len(sorter.losses) == -(-2 * (60 - rows) // 4)
    adapter = _pull_adapter(folder / "encoder", "sorter", tmp_path)
    assert adapter.labels == ("a", "b", "c")
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}


def test_a_target_that_is_met_ends_each_stage_and_the_tokens_end_them_all(results):
    stages = {run: results[run].ledger["steps_by_stage"] for run in ("sated", "spent", "bored")}
    assert stages["sated"] == {"sparse": 2, "low-rank": 2}
    assert stages["spent"] == {"sparse": 1, "low-rank": 0}
    assert [len(results[run].losses) for run in stages] == [4, 1, sum(stages["bored"].values())]
    assert 4 <= stages["bored"]["sparse"] < 6
    for run in stages:
        assert set(results[run].files) == set(results["slora-replicate-1"].files)


def test_a_run_that_stopped_early_does_not_train_on_after_a_death(results, folder):
    assert results["sated-died"].files == {}
    spec = _make_spec(folder, name="sated-died", train={"eval_every": 2, "stop": {"target": 1e9}})
    again = train_all([TrainingCase("sated-died", spec)], 1)["sated-died"]
    assert again.files == results["sated"].files
    assert len(again.losses) == len(results["sated"].losses)


def test_a_run_that_died_resumes_with_another_number_of_workers(results):
    # Died after step 13 on two workers, with a checkpoint at 12: one worker repeated one step.
    losses = results["moved"].losses
    assert len(losses) == 13 + 8
    assert losses[:12] + losses[13:] == pytest.approx(results["slora-replicate-1"].losses, rel=1e-4)
    assert results["moved"].evaluations.keys() == results["slora-replicate-1"].evaluations.keys()


@pytest.fixture(scope="module")
def resumed(results: dict[str, TrainingResult], folder: Path) -> dict[str, TrainingResult]:
    """Resume the trainings that died on one worker."""
    runs = [f"{seam.replace(' ', '-')}-died" for seam in DEATHS]
    return train_all([TrainingCase(run, _make_spec(folder, name=run)) for run in runs], 1)


@pytest.mark.parametrize("seam", list(DEATHS))
def test_a_death_changes_no_bit_of_the_adapter(results, resumed, seam):
    run = f"{seam.replace(' ', '-')}-died"
    assert results[run].files == {}
    assert resumed[run].files == results["slora-replicate-1"].files
    assert resumed[run].evaluations == results["slora-replicate-1"].evaluations
