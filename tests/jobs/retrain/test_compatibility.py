"""Adapters that training cannot continue from: all mismatches are reported before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault
from jobs.inspect.base_digest import digest_model
from jobs.plan.preflight import validate_run
from jobs.retrain.compatibility import find_start_faults
from jobs.store.adapters.manifest import Manifest, MaskRecord
from jobs.store.local import DirectoryStore
from tests.jobs.retrain.builders import (
    LAYERS,
    committed,
    lora_files,
    masked_factor_files,
    sparse_files,
)
from tests.jobs.retrain.specs import a_retrain

LORA: dict[str, Any] = {"kind": "lora"}
SPARSE: dict[str, Any] = {"kind": "sparse"}
MASK = MaskRecord(strategy="random", seed=0, density=0.05)


def _find_faults(workspace: Path, manifest: Manifest, **spec: Any) -> dict[str, str]:
    validated = validate_run(a_retrain(workspace, **spec))
    store, digest = DirectoryStore(workspace / "store"), digest_model(workspace / "model")
    faults: list[Fault] = find_start_faults(store, manifest, validated, digest)
    return {fault.key: fault.problem for fault in faults}


@pytest.mark.parametrize("kind", ["lora", "slora"])
def test_a_lora_continues_from_factors_of_its_shape(kind, workspace):
    manifest = committed(workspace, lora_files(workspace / "one"), kind=kind)
    assert _find_faults(workspace, manifest, method=LORA) == {}


def test_sparse_training_continues_from_values_on_the_same_masks(workspace):
    manifest = committed(workspace, sparse_files(workspace / "one"), kind="sparse", mask=MASK)
    assert _find_faults(workspace, manifest, method=SPARSE) == {}


FACTORS: dict[str, Any] = {"kind": "lora", "factor_density": 0.25}


@pytest.mark.parametrize("storage", ["peft", "compact"])
def test_masked_factors_continue_from_masked_ones_and_are_stored_alone_on_equal_masks(
    storage, workspace
):
    rule = {"kind": "balanced", "density": 0.25, "seed": 0}
    manifest = committed(
        workspace, masked_factor_files(workspace / storage, rule), kind="lora", run=storage
    )
    method = {**FACTORS, "factor_storage": storage}
    assert _find_faults(workspace, manifest, method=method) == {}
    faults = _find_faults(workspace, manifest, method={**method, "factor_mask": "lines"})
    assert list(faults) == (["method.factor_storage"] if storage == "compact" else [])


def test_another_rank_is_reported_with_the_adapters_own(workspace):
    manifest = committed(workspace, lora_files(workspace / "one", rank=4), kind="lora")
    faults = _find_faults(workspace, manifest, method=LORA)
    assert faults == {"method.rank": "the spec says 2, but the factors of tiny@v1 have rank 4"}


def test_targets_on_either_side_alone_are_reported(workspace):
    layers = {**LAYERS, "model.layers.9.mlp.up_proj": (16, 8)}
    del layers["model.layers.0.mlp.up_proj"]
    manifest = committed(workspace, lora_files(workspace / "one", layers=layers), kind="lora")
    validated = validate_run(a_retrain(workspace, method=LORA))
    store, digest = DirectoryStore(workspace / "store"), digest_model(workspace / "model")
    faults = [str(fault) for fault in find_start_faults(store, manifest, validated, digest)]
    assert "layers.9.mlp.up_proj: adapted only in tiny@v1" in faults[0]
    assert "layers.0.mlp.up_proj: adapted only in this spec" in faults[1]


def test_another_base_is_reported_by_its_digest(workspace):
    manifest = committed(workspace, lora_files(workspace / "one"), kind="lora", base="b" * 64)
    assert "not bbbbbbbbbbbb" in _find_faults(workspace, manifest, method=LORA)["model.path"]


@pytest.mark.parametrize("kind", ["sparse", "full"])
def test_another_kind_is_reported(kind, workspace):
    manifest = committed(workspace, lora_files(workspace / "one"), kind="lora")
    faults = _find_faults(workspace, manifest, method={"kind": kind})
    assert faults["method.kind"] == f"{kind} cannot continue from tiny@v1, whose kind is lora"


def test_values_beside_factors_are_refused_with_the_reason(workspace):
    manifest = committed(workspace, sparse_files(workspace / "one"), kind="slora", mask=MASK)
    assert (
        "values beside its factors"
        in _find_faults(workspace, manifest, method=LORA)["retrain.start"]
    )


def test_all_differences_of_the_masks_are_reported_together(workspace):
    manifest = committed(workspace, sparse_files(workspace / "one"), kind="sparse", mask=MASK)
    faults = _find_faults(workspace, manifest, method={**SPARSE, "density": 0.1}, train={"seed": 3})
    assert faults == {
        "method.density": "the spec says 0.1, but tiny@v1 has masks of 0.05",
        "train.seed": "the spec says 3, but tiny@v1 has masks of 0",
    }


def test_a_changed_config_file_is_reported(workspace):
    manifest = committed(workspace, lora_files(workspace / "one"), kind="lora")
    (workspace / "store/adapters/tiny/v1/adapter_config.json").write_text('{"r": 2}')
    assert (
        "does not match its digest"
        in _find_faults(workspace, manifest, method=LORA)["retrain.start"]
    )
