"""The masks of a run: random from the seed, or chosen by scores and saved to resume from.

Chosen masks are written once, to `runs/<run>/masks.safetensors`, before the first step: a resumed
run reads them, because the scores would cost their calibration again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from jobs.spec.schema import MethodSection
from jobs.store.runs.run_store import MASKS, RunStore
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import BlockMask, EntryMask, Mask
from slora.masks.selection import MaskRequest, choose_masks

Shapes = Mapping[str, tuple[int, int]]


def make_mask_request(method: MethodSection, *, seed: int) -> MaskRequest:
    """Return the spec's mask keys as the method's request."""
    # Without a hand-off there is no rank to size a mask by.
    by_rank = method.kind == "slora" and method.sizing == "rank"
    return MaskRequest(
        mask=method.mask,
        score=method.score,
        sizing="rank" if by_rank else "density",
        rank=method.rank,
        density=method.density,
        allocation=method.allocation,
        seed=seed,
    )


def make_factor_mask_rule(method: MethodSection, *, seed: int) -> FactorMaskRule | None:
    """Return the rule of the masks of A and B, or None if these are trained whole."""
    if not method.has_factor_masks:
        return None
    return FactorMaskRule(method.factor_mask, method.factor_density, seed)


def make_masks(
    shapes: Shapes,
    request: MaskRequest,
    scores: Iterable[tuple[str, Tensor]] | None,
    runs: RunStore,
    *,
    writes: bool,
) -> dict[str, Mask]:
    """Return every layer's mask, the same on every rank; save chosen ones if `writes`."""
    masks = choose_masks(shapes, request, scores)
    if writes and request.mask != "random":
        runs.store.put(runs.key(MASKS), pack_masks(masks))
    return masks


def load_masks(runs: RunStore, shapes: Shapes) -> dict[str, Mask] | None:
    """Return the masks that an earlier try of this run chose, or None."""
    if runs.store.head(runs.key(MASKS)) is None:
        return None
    return unpack_masks(runs.store.get(runs.key(MASKS)), shapes)


def pack_masks(masks: Mapping[str, Mask]) -> bytes:
    """Pack masks as safetensors: 4 bytes a position, or 8 if a matrix has 2^31 entries or more."""
    tensors: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if isinstance(mask, BlockMask):
            # A side of which all rows or columns are chosen is omitted.
            for side, chosen, size in _list_sides(mask):
                if chosen.numel() < size:
                    tensors[f"{name}/{side}"] = chosen
        else:
            tensors[f"{name}/positions"] = mask.positions
    fits_int32 = all(mask.shape[0] * mask.shape[1] < 2**31 for mask in masks.values())
    dtype = torch.int32 if fits_int32 else torch.int64
    return save({name: positions.to(dtype) for name, positions in tensors.items()})


def unpack_masks(packed: bytes, shapes: Shapes) -> dict[str, Mask]:
    """Return the masks that `pack_masks` packed, for layers of these shapes."""
    tensors = {name: tensor.to(torch.int64) for name, tensor in load(packed).items()}
    masks: dict[str, Mask] = {}
    for name, shape in shapes.items():
        if (positions := tensors.get(f"{name}/positions")) is not None:
            masks[name] = EntryMask(shape, positions)
        else:
            rows, columns = (
                tensors.get(f"{name}/{side}", torch.arange(size))
                for side, size in zip(("rows", "columns"), shape, strict=True)
            )
            masks[name] = BlockMask(shape, rows, columns)
    return masks


def _list_sides(mask: BlockMask) -> tuple[tuple[str, Tensor, int], tuple[str, Tensor, int]]:
    return ("rows", mask.rows, mask.shape[0]), ("columns", mask.columns, mask.shape[1])
