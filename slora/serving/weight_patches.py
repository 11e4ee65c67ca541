"""A sparse adapter as patches of the base's checkpoint: positions, new values and old ones.

Z: entries of a layer's mask. One safetensors file holds, for each tensor of the checkpoint,
`NAME|positions` (int32 or int64 `[Z]`, flat), `NAME|new` and `NAME|old` (`[Z]`, in the type that
the server computes in). The workers read it at a swap and keep nothing of it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slora.formats.compact import SparseAdapter
from slora.layers.shapes import LayerShape, count_experts
from slora.serving.base_weights import BaseWeights
from slora.serving.refusals import ServingRefused

POSITIONS, NEW, OLD, SHAPE = "|positions", "|new", "|old", "|shape"


@dataclass(frozen=True)
class TensorPatch:
    """Values `[Z]` at flat positions `[Z]` (int64, distinct) of a tensor of this shape."""

    name: str
    shape: tuple[int, ...]
    positions: Tensor
    values: Tensor


def write_patches(
    file: Path, adapter: SparseAdapter, base: BaseWeights, dtype: torch.dtype
) -> tuple[str, ...]:
    """Write the patch file of an adapter, and return the names of the tensors that it changes.

    The new values are what a merge into a model of this type has: the base in `dtype`, plus the
    adapter's values in float32, rounded once. Raise ServingRefused.
    """
    if adapter.factors:
        raise ServingRefused(
            400,
            f"{min(adapter.factors)} has factors beside its values, and this server adds values "
            "only. Serve it as a LoRA: `slora adapters export --as peft`",
        )
    if adapter.head:
        raise ServingRefused(
            400, f"it trains {min(adapter.head)} beside its layers. Serve it merged: "
            "`slora adapters merge`",
        )  # fmt: skip
    tensors = dict[str, Tensor]()
    owners = dict[str, str]()
    for layer, values in adapter.values.items():
        mask = adapter.masks[layer]
        shape = LayerShape(*mask.shape, count_experts(mask.shape))
        name = base.find_tensor(layer, shape)
        if name in owners:
            raise ServingRefused(400, f"{layer} and {owners[name]} are the same tensor, {name}")
        owners[name] = layer
        tensors.update(_make_patch(name, layer, mask.positions, values, base, dtype))
    save_file(tensors, file)
    return tuple(owners)


def _make_patch(
    name: str, layer: str, positions: Tensor, values: Tensor, base: BaseWeights, dtype: torch.dtype
) -> dict[str, Tensor]:
    weight = base.read_tensor(name)
    old = weight.flatten()[positions].to(dtype)
    new = (old.float() + values).to(dtype)
    for label, numbers in (("base", old), ("adapter", new)):
        if not torch.isfinite(numbers).all():
            raise ServingRefused(400, f"{layer}: the {label} has values that no {dtype} holds")
    fits = weight.numel() <= torch.iinfo(torch.int32).max
    return {
        name + POSITIONS: positions.int() if fits else positions,
        name + NEW: new,
        name + OLD: old,
        name + SHAPE: torch.tensor(weight.shape),
    }


def list_tensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the checkpoint that a patch file changes."""
    with safe_open(file, framework="pt") as reader:
        return {
            key.removesuffix(SHAPE): tuple(reader.get_tensor(key).tolist())
            for key in reader.keys()  # noqa: SIM118
            if key.endswith(SHAPE)
        }


def iter_swap(undo: Sequence[Path], apply: Path | None) -> Iterator[TensorPatch]:
    """Yield, tensor by tensor, what turns a base with the adapters of `undo` in it into one with
    `apply` alone. Positions of both take the new value; each position is written once.
    """
    files = [(file, OLD) for file in undo] + ([] if apply is None else [(apply, NEW)])
    with ExitStack() as stack:
        parts = [_PatchFile(stack.enter_context(_open(file)), kind) for file, kind in files]
        for name in dict.fromkeys(name for part in parts for name in part.names):
            yield _merge_parts(name, [part for part in parts if name in part.names])


class _PatchFile:
    """An open patch file, of which the old or the new values are read."""

    def __init__(self, reader: Any, kind: str) -> None:
        self._reader, self._kind = reader, kind
        keys = reader.keys()
        self.names = {key.removesuffix(SHAPE): None for key in keys if key.endswith(SHAPE)}

    def read_patch(self, name: str) -> TensorPatch:
        """Return the values of a tensor at their positions."""
        read = self._reader.get_tensor
        shape = tuple(read(name + SHAPE).tolist())
        return TensorPatch(name, shape, read(name + POSITIONS).long(), read(name + self._kind))


def _open(file: Path) -> Any:
    return safe_open(file, framework="pt")


def _merge_parts(name: str, parts: Sequence[_PatchFile]) -> TensorPatch:
    """Join what the files say of one tensor; a later file counts more."""
    merged, *later = (part.read_patch(name) for part in parts)
    for patch in later:
        is_kept = ~torch.isin(merged.positions, patch.positions, assume_unique=True)
        merged = TensorPatch(
            name,
            merged.shape,
            torch.cat([merged.positions[is_kept], patch.positions]),
            torch.cat([merged.values[is_kept], patch.values]),
        )
    return merged
