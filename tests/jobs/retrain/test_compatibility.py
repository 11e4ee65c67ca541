"""What can't be gone on from: every mismatch of adapter and spec told before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault
from jobs.inspect.model_files import digest_model
from jobs.plan.preflight import validate_run
from jobs.retrain.compatibility import find_start_faults
from jobs.store.adapters.manifest import Manifest, MaskRecord
from jobs.store.local import DirectoryStore
from tests.jobs.retrain.builders import LAYERS, committed, lora_files, sparse_files
from tests.jobs.retrain.specs import a_retrain

LORA: dict[str, Any] = {"kind": "lora"}
SPARSE: dict[str, Any] = {"kind": "sparse"}
MASK = MaskRecord(strategy="random", seed=0, density=0.05)


def _faults(place: Path, manifest: Manifest, **spec: Any) -> dict[str, str]:
    checked = validate_run(a_retrain(place, **spec).training)
    store, digest = DirectoryStore(place / "store"), digest_model(place / "model")
    found: list[Fault] = find_start_faults(store, manifest, checked, digest)
    return {fault.key: fault.problem for fault in found}


@pytest.mark.parametrize("kind", ["lora", "slora"])
def test_a_lora_goes_on_from_factors_of_its_shape(kind, place):
    manifest = committed(place, lora_files(place / "one"), kind=kind)
    assert _faults(place, manifest, method=LORA) == {}


def test_values_go_on_from_values_on_the_same_masks(place):
    manifest = committed(place, sparse_files(place / "one"), kind="sparse", mask=MASK)
    assert _faults(place, manifest, method=SPARSE) == {}


def test_another_rank_is_told_with_the_one_it_has(place):
    manifest = committed(place, lora_files(place / "one", rank=4), kind="lora")
    told = _faults(place, manifest, method=LORA)
    assert told == {"method.rank": "2, while the factors of tiny@v1 have 4"}


def test_other_targets_are_told_from_both_sides(place):
    layers = {**LAYERS, "model.layers.9.mlp.up_proj": (16, 8)}
    del layers["model.layers.0.mlp.up_proj"]
    manifest = committed(place, lora_files(place / "one", layers=layers), kind="lora")
    checked = validate_run(a_retrain(place, method=LORA).training)
    store, digest = DirectoryStore(place / "store"), digest_model(place / "model")
    told = [str(fault) for fault in find_start_faults(store, manifest, checked, digest)]
    assert "layers.9.mlp.up_proj: only in tiny@v1" in told[0]
    assert "layers.0.mlp.up_proj: only among the targets" in told[1]


def test_another_base_is_told_by_its_digest(place):
    manifest = committed(place, lora_files(place / "one"), kind="lora", base="b" * 64)
    assert (
        "another base: digest bbbbbbbbbbbb" in _faults(place, manifest, method=LORA)["model.path"]
    )


@pytest.mark.parametrize("kind", ["sparse", "full"])
def test_another_kind_is_told(kind, place):
    manifest = committed(place, lora_files(place / "one"), kind="lora")
    told = _faults(place, manifest, method={"kind": kind})
    assert told["method.kind"] == f"{kind} can't go on from tiny@v1, which is of kind lora"


def test_values_beside_factors_are_refused_in_words(place):
    manifest = committed(place, sparse_files(place / "one"), kind="slora", mask=MASK)
    assert "values beside its factors" in _faults(place, manifest, method=LORA)["retrain.start"]


def test_other_masks_are_told_all_together(place):
    manifest = committed(place, sparse_files(place / "one"), kind="sparse", mask=MASK)
    told = _faults(place, manifest, method={**SPARSE, "density": 0.1}, train={"seed": 3})
    assert told == {
        "method.density": "0.1, while the masks of tiny@v1 were made with 0.05",
        "train.seed": "3, while the masks of tiny@v1 were made with 0",
    }


def test_a_small_file_that_was_changed_is_told(place):
    manifest = committed(place, lora_files(place / "one"), kind="lora")
    (place / "store/adapters/tiny/v1/adapter_config.json").write_text('{"r": 2}')
    assert "has not the digest" in _faults(place, manifest, method=LORA)["retrain.start"]
