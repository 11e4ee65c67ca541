"""A base of two layers, and folders of adapters for it, as a server finds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slora.formats.base_files import digest_file, digest_files, list_base_files
from slora.formats.peft import LoraAdapter, SparseAdapter, write_lora, write_sparse
from slora.layers.shapes import LayerShape
from slora.masks.mask import EntryMask, Mask, draw_random_mask

LAYERS = {"model.layers.0.q_proj": (6, 8), "model.layers.0.down_proj": (8, 12)}


def make_base(
    folder: Path, *, model_type: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """Write the config and the weights of the base."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    torch.manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in LAYERS.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def digest_folder(base: Path) -> str:
    return digest_files(base, list_base_files(base))


def make_sparse(
    folder: Path, base: Path, *, seed: int | None = 1, shift: float = 0.5, **changes: Any
) -> Path:
    """Write a sparse adapter with a manifest: random masks of a seed, or chosen positions."""
    masks: dict[str, Mask] = {}
    for name, shape in LAYERS.items():
        whole = LayerShape(*shape)
        if seed is None:
            masks[name] = EntryMask(whole, torch.tensor([0, 5, 7]))
        else:
            masks[name] = draw_random_mask(seed=seed, name=name, shape=whole, density=0.25)
    values = {name: torch.linspace(0.1, 1, mask.nnz) * shift for name, mask in masks.items()}
    density = None if seed is None else 0.25
    fields = {"values": values, "masks": masks, "base": "b", "task": "causal-lm", "seed": seed,
              "density": density, **changes}  # fmt: skip
    write_sparse(folder, SparseAdapter(**fields))
    write_manifest(folder, digest_folder(base))
    return folder


def make_lora(folder: Path, base: Path, *, rank: int = 2) -> Path:
    """Write a LoRA with a manifest."""
    factors = {
        name: (torch.randn(rank, columns), torch.randn(rows, rank))
        for name, (rows, columns) in LAYERS.items()
    }
    write_lora(folder, LoraAdapter(factors, alpha=2, rank=rank, base="b", task="causal-lm"))
    write_manifest(folder, digest_folder(base))
    return folder


def write_manifest(folder: Path, base_digest: str, **base: Any) -> None:
    """Write what a server reads of a manifest."""
    files = [
        {"name": path.name, "sha256": digest_file(path)}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    ]
    record = {"base": {"digest": base_digest, "files": [], **base}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(record))


def read_weights(base: Path) -> dict[str, Tensor]:
    return load_file(base / "model.safetensors")


def merge(weights: Mapping[str, Tensor], adapter: SparseAdapter) -> dict[str, Tensor]:
    """Return the weights with an adapter in them, entry by entry."""
    merged = {name: weight.clone() for name, weight in weights.items()}
    for layer, values in adapter.values.items():
        flat = merged[f"{layer}.weight"].flatten()
        for position, value in zip(adapter.masks[layer].positions.tolist(), values, strict=True):
            flat[position] = (flat[position].float() + value).to(flat.dtype)
        merged[f"{layer}.weight"] = flat.view(LAYERS[layer])
    return merged
