"""Patches put an adapter into the checkpoint's tensors and take it out, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slora.formats.compact import SparseAdapter
from slora.formats.peft import read_adapter
from slora.layers.shapes import LayerShape
from slora.masks.mask import EntryMask
from slora.serving.base_weights import BaseWeights
from slora.serving.refusals import ServingRefused
from slora.serving.weight_patches import iter_swap, write_patches
from tests.slora.serving.sparse_folders import make_base, make_sparse, merge, read_weights


def write(weights: dict[str, Tensor], undo: list[Path], apply: Path | None) -> None:
    for patch in iter_swap(undo, apply):
        weights[patch.name].flatten()[patch.positions] = patch.values


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_replace_each_other_and_leave_the_base_as_it_was(
    tmp_path: Path, dtype: torch.dtype
):
    base = make_base(tmp_path / "base", dtype=dtype)
    files, merged = [], []
    for seed in (1, 2, None):  # two masks from seeds, and one of chosen positions
        adapter = read_adapter(make_sparse(tmp_path / f"a{seed}", base, seed=seed))
        assert isinstance(adapter, SparseAdapter)
        files.append(tmp_path / f"{seed}.safetensors")
        write_patches(files[-1], adapter, BaseWeights(base), dtype)
        merged.append(merge(read_weights(base), adapter))
    served = read_weights(base)
    write(served, [], files[0])
    assert equal(served, merged[0]) and not equal(served, read_weights(base))
    write(served, [files[0]], files[1])
    assert equal(served, merged[1])
    # After a failure two may be in the weights, whole or in part.
    write(served, [], files[0])
    write(served, [files[0], files[1]], files[2])
    assert equal(served, merged[2])
    write(served, [files[2]], None)
    assert equal(served, read_weights(base))


def test_a_layer_that_no_patch_reaches_is_refused_by_name(tmp_path: Path):
    base = make_base(tmp_path / "base")
    layer, mask = "model.layers.0.q_proj", EntryMask(LayerShape(6, 8), torch.tensor([3]))
    one: dict[str, Any] = {"values": {layer: torch.ones(1)}, "masks": {layer: mask}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"factors": {layer: (torch.ones(1, 8), torch.ones(6, 1))}, **one}, "factors beside"),
        ({"head": {"score.weight": torch.ones(2, 8)}, **one}, "score.weight"),
        ({"values": {"m.x": torch.ones(1)}, "masks": {"m.x": mask}}, "no weight of the layer m.x"),
        ({**one, "masks": {layer: EntryMask(LayerShape(8, 6), torch.tensor([3]))}}, r"\(6, 8\)"),
        ({**one, "masks": {layer: EntryMask(LayerShape(6, 8, 2), torch.tensor([3]))}}, "experts"),
        ({**one, "values": {layer: torch.tensor([1e38])}}, "float16"),
    ]
    for number, (fields, reason) in enumerate(cases):
        adapter = SparseAdapter(base="b", task="causal-lm", **fields)
        dtype = torch.float16 if reason == "float16" else torch.float32
        with pytest.raises(ServingRefused, match=reason):
            write_patches(tmp_path / f"{number}", adapter, BaseWeights(base), dtype)
    transposed = make_base(tmp_path / "gpt2", model_type="gpt2")
    adapter = SparseAdapter(base="b", task="causal-lm", **one)
    with pytest.raises(ServingRefused, match="Conv1D"):
        write_patches(tmp_path / "x", adapter, BaseWeights(transposed), torch.float32)
