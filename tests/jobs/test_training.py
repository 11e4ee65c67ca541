"""Whole trainings on real ranks: what must not depend on how they were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.store.adapters import pull, resolve
from jobs.store.objects import open_store
from slora.folder import LoraAdapter, SparseAdapter, read
from slora.lowrank import fresh_factors
from slora.sparse import dense_delta
from tests.tiny import chat_rows, label_rows, laid_over, tiny_chat_model, tiny_encoder, tiny_spec
from tests.training_runs import Asked, Left, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

DEATHS = {
    "inside the sparse stage": "step 4",
    "at the last sparse step": "step 6",
    "inside the low-rank stage": "step 15",
    "before the commit": "commit",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    tiny_chat_model(made / "model")
    chat_rows(made / "train.jsonl", 60)
    chat_rows(made / "eval.jsonl", 9)
    (made / "encoder").mkdir()
    tiny_encoder(made / "encoder" / "model")
    label_rows(made / "encoder" / "train.jsonl", 60, ("a", "b", "c"))
    return made


@pytest.fixture(scope="module")
def left(folder: Path) -> dict[str, Left]:
    """Every training of this file: two groups of processes, and one more for what comes after."""
    found = {}
    for world_size in (1, 2):
        found.update(train_all(_asked(folder, world_size), world_size))
    found.update(train_all([Asked("moved", _spec(folder, name="moved"))], 1))
    return found


def _spec(folder: Path, **changes: Any) -> dict[str, Any]:
    spec = tiny_spec(
        folder,
        data={"eval": str(folder / "eval.jsonl")},
        train={"steps": 20, "weight_decay": 0.1, "checkpoint_every": 3},
        cluster={"sharding": "replicate"},
    )
    return laid_over(spec, changes)


def _asked(folder: Path, world_size: int) -> list[Asked]:
    kinds = [
        Asked(f"{kind} {sharding} {world_size}".replace(" ", "-"), _spec(
            folder, name=f"{kind}-{sharding}-{world_size}", method={"kind": kind},
            cluster={"sharding": sharding}))
        for kind in ("slora", "sparse", "lora", "full")
        for sharding in ("replicate", "cluster")
        if sharding == "replicate" or kind == "slora"
    ]  # fmt: skip
    if world_size == 1:
        return [*kinds, *_once(folder)]
    twice = Asked("again", _spec(folder, name="again"))
    encoder = folder / "encoder"
    classifier = tiny_spec(
        encoder,
        name="sorter",
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval_fraction": 0.2},
        train={"steps": None, "epochs": 2},
    )
    narrow = [
        Asked(f"narrow-{sharding}", _spec(
            folder, name=f"narrow-{sharding}", model={"dtype": "bfloat16"},
            cluster={"sharding": sharding}))
        for sharding in ("replicate", "cluster")
    ]  # fmt: skip
    # Dies on two workers; the fixture goes on with it on one.
    moved = Asked("moved", _spec(folder, name="moved"), dies="step 13")
    return [*kinds, *narrow, twice, Asked("sorter", classifier), moved]


def _once(folder: Path) -> list[Asked]:
    """What one worker can show alone."""
    frozen = _spec(
        folder,
        name="frozen",
        method={"kind": "lora"},
        train={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0},
        cluster={"sharding": "cluster"},
    )
    handed = _spec(folder, name="handed", method={"sparse_share": 1.0, "rank": 3})
    deaths = []
    for place, dies in DEATHS.items():
        run = place.replace(" ", "-")
        spec = _spec(folder, name=run)
        deaths += [Asked(f"{run}-died", {**spec, "name": f"{run}-died"}, dies=dies)]
    return [Asked("frozen", frozen), Asked("handed", handed), *deaths, *_stopped(folder)]


def _stopped(folder: Path) -> list[Asked]:
    """Trainings that have enough before their last step."""
    often = {"eval_every": 2}
    stops: dict[str, dict[str, Any]] = {
        "sated": {**often, "stop": {"target": 1e9}},
        "spent": {**often, "stop": {"tokens": 1}},
        "bored": {**often, "learning_rate": 1e-12, "stop": {"patience": 1}},
    }
    asked = [Asked(run, _spec(folder, name=run, train=train)) for run, train in stops.items()]
    late = _spec(folder, name="sated-died", train=stops["sated"])
    return [*asked, Asked("sated-died", late, dies="commit")]


def _adapter(folder: Path, name: str, tmp_path: Path) -> LoraAdapter | SparseAdapter:
    store = open_store(f"file://{folder / 'store'}")
    return read(pull(store, resolve(store, name), tmp_path / name))


@pytest.mark.parametrize("kind", ["slora", "sparse", "lora", "full"])
def test_one_worker_and_two_give_the_same_losses(left, kind):
    one, two = left[f"{kind}-replicate-1"].losses, left[f"{kind}-replicate-2"].losses
    assert len(one) == len(two) == 20
    assert two == pytest.approx(one, rel=1e-4)
    assert min(one[-3:]) < one[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sharded_base_gives_the_same_losses_as_a_replicated_one(left, workers):
    sharded = left[f"slora-cluster-{workers}"]
    assert sharded.losses == pytest.approx(left["slora-replicate-1"].losses, rel=1e-4)


def test_evaluations_do_not_depend_on_the_number_of_workers(left):
    one, two = left["slora-replicate-1"].evaluations, left["slora-replicate-2"].evaluations
    assert list(one) == list(two) == ["before", "sparse", "handoff", "end"]
    for at in one:
        assert two[at]["loss"] == pytest.approx(one[at]["loss"], rel=1e-4)
    assert one["end"]["loss"] < one["before"]["loss"]


@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_base_is_bit_equal_after_both_stages_with_weight_decay_on(left, sharding, workers):
    assert left[f"slora-{sharding}-{workers}"].base_untouched


def test_the_check_of_the_base_can_fail(left):
    assert not left["full-replicate-1"].base_untouched


def test_every_rank_has_the_same_masks_and_layers_of_one_shape_have_different_ones(left):
    first, second = left["slora-replicate-2"].masks
    assert first == second
    assert left["slora-replicate-1"].masks[0] == first
    assert len(set(first.values())) == len(first) == 14


def test_the_same_spec_and_seed_give_bit_equal_adapters(left):
    assert left["again"].files["adapter_model.safetensors"]
    assert left["again"].files == left["slora-replicate-2"].files


def test_a_is_really_drawn_where_the_base_is_sharded(left, folder, tmp_path):
    adapter = _adapter(folder, "frozen", tmp_path)
    assert isinstance(adapter, LoraAdapter)
    for name, (a_RI, b_OR) in adapter.factors.items():
        shape = (b_OR.shape[0], a_RI.shape[1])
        fresh, _ = fresh_factors(seed=0, name=name, shape=shape, rank=2)
        torch.testing.assert_close(a_RI, fresh)
        assert b_OR.abs().max() < 1e-10


def test_no_low_rank_step_leaves_exactly_the_best_approximation(left, folder, tmp_path):
    handed, values = (_adapter(folder, name, tmp_path) for name in ("handed", "sparse-replicate-1"))
    assert isinstance(handed, LoraAdapter)
    assert isinstance(values, SparseAdapter)
    for name, mask in values.masks.items():
        delta = dense_delta(values.values[name], mask).double()
        a_RI, b_OR = handed.factors[name]
        left_out = (delta - handed.scale * b_OR.double() @ a_RI.double()).norm()
        tail = torch.linalg.svdvals(delta)[3:].square().sum().sqrt()
        torch.testing.assert_close(left_out, tail, rtol=1e-5, atol=1e-6)
    assert 0 < left["handed"].ledger["handoff_kept"] < 1


@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
def test_a_bfloat16_base_learns_as_a_float32_one_does_to_its_precision(
    left, folder, tmp_path, sharding
):
    narrow, wide = left[f"narrow-{sharding}"], left["slora-replicate-2"]
    # bfloat16 has 8 bits: a loss of 5.5 is known to about 0.02.
    assert narrow.losses == pytest.approx(wide.losses, abs=0.05)
    assert narrow.base_untouched
    adapter = _adapter(folder, f"narrow-{sharding}", tmp_path)
    assert isinstance(adapter, LoraAdapter)
    assert {a_RI.dtype for a_RI, _ in adapter.factors.values()} == {torch.float32}


def test_the_ledger_counts_what_the_adapter_holds(left, folder, tmp_path):
    adapter = _adapter(folder, "sparse-replicate-1", tmp_path)
    assert isinstance(adapter, SparseAdapter)
    held = sum(values.numel() for values in adapter.values.values())
    assert left["sparse-replicate-1"].ledger["sparse_trainable"] == held


def test_a_classifier_trains_whole_epochs_and_its_head_travels_along(left, folder, tmp_path):
    sorter = left["sorter"]
    rows = sorter.evaluations["end"]["rows"]
    # Two epochs of the rows that are not held out, four a step, the last step filled up.
    assert len(sorter.losses) == -(-2 * (60 - rows) // 4)
    adapter = _adapter(folder / "encoder", "sorter", tmp_path)
    assert adapter.labels == ("a", "b", "c")
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}


def test_a_target_that_is_met_ends_each_stage_and_the_tokens_end_them_all(left):
    stages = {run: left[run].ledger["steps_by_stage"] for run in ("sated", "spent", "bored")}
    assert stages["sated"] == {"sparse": 2, "low-rank": 2}
    assert stages["spent"] == {"sparse": 1, "low-rank": 0}
    assert [len(left[run].losses) for run in stages] == [4, 1, sum(stages["bored"].values())]
    assert 4 <= stages["bored"]["sparse"] < 6
    for run in stages:
        assert set(left[run].files) == set(left["slora-replicate-1"].files)


def test_what_was_enough_stays_so_after_a_death(left, folder):
    assert left["sated-died"].files == {}
    spec = _spec(folder, name="sated-died", train={"eval_every": 2, "stop": {"target": 1e9}})
    again = train_all([Asked("sated-died", spec)], 1)["sated-died"]
    assert again.files == left["sated"].files
    assert len(again.losses) == len(left["sated"].losses)


def test_a_run_that_died_goes_on_at_another_number_of_workers(left):
    # Died after step 13 on two workers, with a checkpoint at 12: one worker repeated one step.
    losses = left["moved"].losses
    assert len(losses) == 13 + 8
    assert losses[:12] + losses[13:] == pytest.approx(left["slora-replicate-1"].losses, rel=1e-4)
    assert left["moved"].evaluations.keys() == left["slora-replicate-1"].evaluations.keys()


@pytest.fixture(scope="module")
def resumed(left: dict[str, Left], folder: Path) -> dict[str, Left]:
    """The trainings that died on one worker, started again under the same runs."""
    runs = [f"{place.replace(' ', '-')}-died" for place in DEATHS]
    return train_all([Asked(run, _spec(folder, name=run)) for run in runs], 1)


@pytest.mark.parametrize("place", list(DEATHS))
def test_a_death_changes_no_bit_of_the_adapter(left, resumed, place):
    run = f"{place.replace(' ', '-')}-died"
    assert left[run].files == {}
    assert resumed[run].files == left["slora-replicate-1"].files
    assert resumed[run].evaluations == left["slora-replicate-1"].evaluations
