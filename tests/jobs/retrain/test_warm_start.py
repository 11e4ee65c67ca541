"""Training that continues from an adapter: what it computes before step 0, and its results."""

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
    "compact": {
        "method": {"kind": "lora", "factor_density": 0.5, "factor_storage": "compact"}},
}  # fmt: skip
NEXT: dict[str, dict[str, Any]] = {
    **{way: {} for way in WAYS},
    # Its sparse stage has found the initial factors: training continues as LoRA.
    "slora": {"method": {"kind": "lora"}},
    "another scale": {"method": {"kind": "lora", "alpha": 5.0, "rslora": True}},
    "masked factors": {"method": {"kind": "lora", "factor_density": 0.5}},
}
OF = {"another scale": "lora", "masked factors": "lora"}
SETTINGS = ("1", "2", "cluster")
SHORT = ("slora", "chosen", "full")
"""What `make test` trains with two workers, over a sharded base, and through a crash."""

TRAININGS = [
    *((way, "1") for way in NEXT),
    *((way, setting) for way in SHORT for setting in SETTINGS[1:]),
    *(pytest.param(way, setting, marks=pytest.mark.long)
      for way in NEXT if way not in SHORT for setting in SETTINGS[1:]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("warm")
    tiny_chat_model(workspace / "model")
    tiny_encoder(workspace / "encoder")
    chat_rows(workspace / "train.jsonl", 60)
    chat_rows(workspace / "eval.jsonl", 9)
    label_rows(workspace / "classes.jsonl", 60)
    label_rows(workspace / "classes.eval.jsonl", 9)
    return workspace


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
        train={"steps": 8, "micro_batch_size": 2, "checkpoint_every": None},
    )
    return merge_spec(merge_spec(spec, WAYS[way]), changes)


def _child(folder: Path, way: str, setting: str, dies: str = "") -> TrainingCase:
    parent = OF.get(way, way)
    spec = merge_spec(_spec(folder, parent), NEXT[way])
    interval = 1 if "died" in setting else None
    sharding = {"sharding": "cluster" if setting == "cluster" else "replicate"}
    run = f"{way}-{setting}".replace(" ", "-")
    spec = merge_spec(spec, {"cluster": sharding, "train": {"checkpoint_every": interval}})
    return TrainingCase(run, {**spec, "name": run}, dies=dies, parent=f"{parent}@v1")


@pytest.fixture(scope="module")
def results(folder: Path, request: pytest.FixtureRequest) -> dict[str, TrainingResult]:
    """Train the parents, and from them with one worker, with two, and through a crash."""
    parents = [TrainingCase(way, _spec(folder, way)) for way in WAYS]
    further = tuple(NEXT) if long_asked(request) else SHORT
    died = [_child(folder, way, "died", dies="step 5") for way in further]
    by_one = train_all([*parents, *(_child(folder, way, "1") for way in NEXT), *died], 1)
    pairs = [_child(folder, way, setting) for way in further for setting in ("2", "cluster")]
    by_two = train_all(pairs, 2)
    return {**by_one, **by_two, **train_all([_child(folder, way, "died") for way in further], 1)}


def _get_result(results: dict[str, TrainingResult], way: str, setting: str) -> TrainingResult:
    return results[f"{way}-{setting}".replace(" ", "-")]


@pytest.mark.parametrize(("way", "setting"), TRAININGS)
def test_before_its_first_step_it_computes_what_its_parent_does(way, setting, results):
    before = _get_result(results, way, setting).evaluations["before"]
    assert before == pytest.approx(results[OF.get(way, way)].evaluations["end"], rel=1e-5)


@pytest.mark.parametrize(("way", "setting"), TRAININGS)
def test_it_learns_further(way, setting, results):
    result = _get_result(results, way, setting)
    assert result.evaluations["end"]["loss"] != result.evaluations["before"]["loss"]
    assert result.losses[-1] < results[OF.get(way, way)].losses[0]


@pytest.mark.parametrize("way", cases(NEXT, SHORT))
def test_two_workers_and_a_sharded_base_train_the_same(way, results):
    for setting in ("2", "cluster"):
        assert _get_result(results, way, setting).losses == pytest.approx(
            _get_result(results, way, "1").losses, rel=1e-3
        )


@pytest.mark.parametrize("way", cases(NEXT, SHORT))
def test_a_crash_in_between_changes_nothing(way, results):
    assert _get_result(results, way, "died").files == _get_result(results, way, "1").files


@pytest.mark.parametrize("way", [way for way in NEXT if way != "full"])
def test_the_base_is_not_touched(way, results):
    assert _get_result(results, way, "1").base_untouched


@pytest.mark.parametrize("way", NEXT)
def test_the_manifest_names_its_parent(way, folder, results):
    store = open_store(_spec(folder, "lora")["store"])
    manifest = resolve_adapter(store, f"{way}-1".replace(" ", "-"))
    assert manifest.parent == f"{OF.get(way, way)}@v1"


def test_values_stay_on_the_masks_that_they_were_learnt_on(results):
    assert _get_result(results, "chosen", "2").masks == [
        *results["chosen"].masks,
        *results["chosen"].masks,
    ]
