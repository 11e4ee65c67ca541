"""Trainings that go on from an adapter: what they compute before step 0, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
from tests.long import cases, long_asked
from tests.tiny import chat_rows, label_rows, merge_spec, tiny_chat_model, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, TrainingResult, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

CLASSES = {"model": {"task": "sequence-classification"}, "data": {"format": "classification"}}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"kind": "lora"}},
    "slora": {"method": {"kind": "slora"}},
    "sparse": {"method": {"kind": "sparse"}},
    "chosen": {"method": {"kind": "sparse", "mask": "fisher", "calibration_batches": 2}},
    "full": {"method": {"kind": "full"}},
    "classes": {"method": {"kind": "lora"}, **CLASSES},
}
NEXT: dict[str, dict[str, Any]] = {
    **{way: {} for way in WAYS},
    # Its sparse stage found where to begin: what goes on from it is a LoRA.
    "slora": {"method": {"kind": "lora"}},
    "another scale": {"method": {"kind": "lora", "alpha": 5.0, "rslora": True}},
}
OF = {"another scale": "lora"}
PLACES = ("1", "2", "cluster")
SHORT = ("slora", "chosen", "full")
"""What `make test` trains on two workers, over a base in parts, and through a death."""

PLACED = [
    *((way, "1") for way in NEXT),
    *((way, place) for way in SHORT for place in PLACES[1:]),
    *(pytest.param(way, place, marks=pytest.mark.long)
      for way in NEXT if way not in SHORT for place in PLACES[1:]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("warm")
    tiny_chat_model(made / "model")
    tiny_encoder(made / "encoder")
    chat_rows(made / "train.jsonl", 60)
    chat_rows(made / "eval.jsonl", 9)
    label_rows(made / "classes.jsonl", 60)
    label_rows(made / "classes.eval.jsonl", 9)
    return made


def _spec(folder: Path, way: str, **changes: Any) -> dict[str, Any]:
    classes = way == "classes"
    spec = tiny_spec(
        folder,
        name=way.replace(" ", "-"),
        model={"path": str(folder / ("encoder" if classes else "model"))},
        data={
            "train": str(folder / ("classes.jsonl" if classes else "train.jsonl")),
            "eval": str(folder / ("classes.eval.jsonl" if classes else "eval.jsonl")),
        },
        train={"steps": 8, "checkpoint_every": None},
    )
    return merge_spec(merge_spec(spec, WAYS[way]), changes)


def _child(folder: Path, way: str, place: str, dies: str = "") -> TrainingCase:
    parent = OF.get(way, way)
    spec = merge_spec(_spec(folder, parent), NEXT[way])
    every = 1 if "died" in place else None
    sharding = {"sharding": "cluster" if place == "cluster" else "replicate"}
    run = f"{way}-{place}".replace(" ", "-")
    spec = merge_spec(spec, {"cluster": sharding, "train": {"checkpoint_every": every}})
    return TrainingCase(run, {**spec, "name": run}, dies=dies, parent=f"{parent}@v1")


@pytest.fixture(scope="module")
def left(folder: Path, request: pytest.FixtureRequest) -> dict[str, TrainingResult]:
    """The parents, those that go on from them alone and in twos, and those that died on the way."""
    parents = [TrainingCase(way, _spec(folder, way)) for way in WAYS]
    further = tuple(NEXT) if long_asked(request) else SHORT
    died = [_child(folder, way, "died", dies="step 5") for way in further]
    one = train_all([*parents, *(_child(folder, way, "1") for way in NEXT), *died], 1)
    twos = [_child(folder, way, place) for way in further for place in ("2", "cluster")]
    two = train_all(twos, 2)
    return {**one, **two, **train_all([_child(folder, way, "died") for way in further], 1)}


def _of(left: dict[str, TrainingResult], way: str, place: str) -> TrainingResult:
    return left[f"{way}-{place}".replace(" ", "-")]


@pytest.mark.parametrize(("way", "place"), PLACED)
def test_before_its_first_step_it_is_what_its_parent_was(way, place, left):
    before = _of(left, way, place).evaluations["before"]
    assert before == pytest.approx(left[OF.get(way, way)].evaluations["end"], rel=1e-5)


@pytest.mark.parametrize(("way", "place"), PLACED)
def test_it_learns_on(way, place, left):
    found = _of(left, way, place)
    assert found.evaluations["end"]["loss"] != found.evaluations["before"]["loss"]
    assert found.losses[-1] < left[OF.get(way, way)].losses[0]


@pytest.mark.parametrize("way", cases(NEXT, SHORT))
def test_two_workers_and_a_base_in_parts_train_the_same(way, left):
    for place in ("2", "cluster"):
        assert _of(left, way, place).losses == pytest.approx(_of(left, way, "1").losses, rel=1e-3)


@pytest.mark.parametrize("way", cases(NEXT, SHORT))
def test_a_death_on_the_way_changes_nothing(way, left):
    assert _of(left, way, "died").files == _of(left, way, "1").files


@pytest.mark.parametrize("way", [way for way in NEXT if way != "full"])
def test_the_base_is_not_touched(way, left):
    assert _of(left, way, "1").base_untouched


@pytest.mark.parametrize("way", NEXT)
def test_the_manifest_names_its_parent(way, folder, left):
    store = open_store(_spec(folder, "lora")["store"])
    manifest = resolve_adapter(store, f"{way}-1".replace(" ", "-"))
    assert manifest.parent == f"{OF.get(way, way)}@v1"


def test_values_stay_on_the_masks_that_they_were_learnt_on(left):
    assert _of(left, "chosen", "2").masks == [*left["chosen"].masks, *left["chosen"].masks]
