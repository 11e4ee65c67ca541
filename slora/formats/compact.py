"""The compact adapter: values on masks, and factors beside them, in their smallest exact form.

Z: entries of a mask. R: the rank. `sparse_config.json` and `sparse_model.safetensors`: masks from a
seed are stored as that, others as their positions, or as a block's rows and columns. Files
are untrusted until they have been checked: no allocation depends on a number that a file only
claims.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from slora.errors import BadAdapter, SloraError
from slora.formats.files import (
    read_json,
    read_revision,
    read_task,
    read_tensors,
    read_token_ids,
    write_files,
)
from slora.formats.peft_tasks import SINGLE_LABEL, TASK_TYPES
from slora.layers.factors import get_factors_shape, get_rank
from slora.layers.patterns import count_entries
from slora.layers.shapes import LayerShape, count_experts, get_expert_shape, get_factor_shapes
from slora.layers.sparse_factors import expand_to_dense, is_zero_outside
from slora.layers.token_rows import TokenIds
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import BlockMask, EntryMask, Mask, draw_random_mask
from slora.masks.sizes import FactorMaskKind, count_trained_factors

SPARSE_CONFIG, SPARSE_WEIGHTS = "sparse_config.json", "sparse_model.safetensors"
FORMAT_VERSION = 4
READABLE_FORMATS = (3, 4)
"""Format 3 has no masks of factors from a seed."""
MAX_FACTOR_SPARSITY = 1_000_000
"""Maximum entries of a factor for each stored one: a file's claims must not cost memory."""
FactorsByLayer = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SparseAdapter:
    """An update of `sparse(values on their mask) + scale * B A` in each layer, and the head.

    `values`: float32 `[Z]` by layer; `masks`: the mask of each of them. `seed` and `density` are
    those of random masks, which are regenerated and not stored. `factors`: (a_RI, b_OR) by layer;
    stored as their nonzero entries if `sparse_factors`, and by the values on `factor_mask` alone if
    that is set: they are zero outside it. `base`, `revision`: as in `LoraAdapter`.
    """

    values: Mapping[str, Tensor]
    masks: Mapping[str, Mask]
    base: str
    task: str
    seed: int | None = None
    density: float | None = None
    factors: FactorsByLayer = field(default_factory=dict)
    scale: float = 1.0
    sparse_factors: bool = False
    factor_mask: FactorMaskRule | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: TokenIds = field(default_factory=dict)
    """Ids of trained embedding rows by module; the rows are in the head, as `...token_rows`."""
    labels: tuple[str, ...] = ()
    problem_type: str = SINGLE_LABEL
    revision: str | None = None

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """Return [O, I] of every layer, [E O, I] of fused experts."""
        layer_shapes = {
            name: LayerShape(*mask.shape, count_experts(mask.shape))
            for name, mask in self.masks.items()
        }
        for name, factors in self.factors.items():
            layer_shapes[name] = get_factors_shape(factors)
        return layer_shapes


def write_sparse(folder: Path, adapter: SparseAdapter) -> None:
    """Write the two files. Raise BadAdapter for unusable tensors."""
    tensors = dict(adapter.head)
    tensors.update({f"{name}.values": values for name, values in adapter.values.items()})
    if adapter.seed is None:
        for name, mask in adapter.masks.items():
            tensors.update(_make_mask_tensors(name, mask))
    for name, factors in adapter.factors.items():
        tensors.update(_make_factor_tensors(name, factors, adapter))
    rule = adapter.factor_mask
    config = {
        "format": FORMAT_VERSION,
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "mask": "chosen" if adapter.seed is None else "random",
        "seed": adapter.seed,
        "density": adapter.density,
        "scale": adapter.scale,
        "sparse_factors": adapter.sparse_factors,
        "factor_mask": None if rule is None else dataclasses.asdict(rule),
        "rank": max((b.shape[1] for _, b in adapter.factors.values()), default=None),
        "values": list(adapter.values),
        "tokens": {name: list(ids) for name, ids in adapter.tokens.items()},
        # A list keeps the model's order, which the names of PEFT's keys depend on.
        "layers": [[name, *shape, shape.experts] for name, shape in adapter.shapes.items()],
    }
    write_files(
        folder,
        SPARSE_CONFIG,
        config,
        SPARSE_WEIGHTS,
        tensors,
        adapter.labels,
        adapter.problem_type,
    )


def read_sparse(folder: Path, labels: tuple[str, ...]) -> SparseAdapter:
    """Return the validated adapter. Raise BadAdapter."""
    path = folder / SPARSE_CONFIG
    config = read_json(path, {})
    tensors = read_tensors(folder / SPARSE_WEIGHTS)
    try:
        adapter = _SparseReader(config, tensors, str(path)).read_adapter(
            read_task(config, path), labels
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, SloraError):
            raise BadAdapter(str(path), str(error)) from None
        raise BadAdapter(str(path), f"not a sparse adapter: {error!r}") from None
    return adapter


def _make_mask_tensors(name: str, mask: Mask) -> dict[str, Tensor]:
    if isinstance(mask, BlockMask):
        return {f"{name}.rows": mask.rows.int(), f"{name}.columns": mask.columns.int()}
    return {f"{name}.positions": _narrow_integers(mask.positions)}


def _make_factor_tensors(
    name: str, factors: tuple[Tensor, Tensor], adapter: SparseAdapter
) -> dict[str, Tensor]:
    tensors, rule = {}, adapter.factor_mask
    masks = None if rule is None else rule.draw(name, get_factors_shape(factors), get_rank(factors))
    for index, side in enumerate(("a_RI", "b_OR")):
        factor = factors[index]
        if masks is not None:
            if not is_zero_outside(factor, masks[index]):
                raise BadAdapter(f"{name}.{side}", "it is not zero outside its mask")
            tensors[f"{name}.{side}.values"] = factor.flatten()[masks[index]]
            continue
        if not adapter.sparse_factors:
            tensors[f"{name}.{side}"] = factor
            continue
        flat = factor.flatten()
        positions = flat.nonzero().squeeze(1)
        # A safetensors file can't hold an empty tensor.
        positions = positions if positions.numel() else torch.zeros(1, dtype=torch.int64)
        tensors[f"{name}.{side}.positions"] = _narrow_integers(positions)
        tensors[f"{name}.{side}.values"] = flat[positions]
    return tensors


def _narrow_integers(numbers: Tensor) -> Tensor:
    """Return the numbers as int32 if they fit."""
    return numbers.int() if not numbers.numel() or int(numbers.max()) < 2**31 else numbers


class _SparseReader:
    """Remove the tensors that the config names from the file's; the remaining ones are the head."""

    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor], path: str) -> None:
        self._config, self._remaining, self._path = config, dict(tensors), path
        self._shapes = {
            str(name): LayerShape(int(rows), int(columns), int(experts))
            for name, rows, columns, experts in config["layers"]
        }

    def read_adapter(self, task: str, labels: tuple[str, ...]) -> SparseAdapter:
        config = self._config
        if config["format"] not in READABLE_FORMATS or config["mask"] not in ("random", "chosen"):
            raise BadAdapter(
                self._path, "this version of slora does not support its format or mask"
            )
        for name, shape in self._shapes.items():
            if min(shape) < 1 or shape[0] * shape[1] >= 2**40:
                raise BadAdapter(self._path, f"{name} has the invalid shape {shape}")
        scale = float(config["scale"])
        if not math.isfinite(scale):
            raise BadAdapter(self._path, f"its scale {scale} is not finite")
        values = {str(name): self._read_floats(f"{name}.values", 1) for name in config["values"]}
        is_random = config["mask"] == "random"
        seed = int(config["seed"]) if is_random else None
        density = float(config["density"]) if is_random else None
        masks = {
            name: self._read_mask(name, tensor.numel(), seed, density)
            for name, tensor in values.items()
        }
        sparse, rule = config["sparse_factors"] is True, self._read_factor_mask()
        factors = {
            name: pair for name in self._shapes if (pair := self._read_factors(name, sparse, rule))
        }
        if empty_layers := self._shapes.keys() - values.keys() - factors.keys():
            raise BadAdapter(self._path, f"{min(empty_layers)} has neither values nor factors")
        return SparseAdapter(
            values=values,
            masks=masks,
            base=str(config.get("base_model_name_or_path")),
            task=task,
            seed=seed,
            density=density,
            factors=factors,
            scale=scale,
            sparse_factors=sparse,
            factor_mask=rule,
            head=self._remaining,
            tokens=read_token_ids(config["tokens"], self._remaining, self._path),
            labels=labels,
            revision=read_revision(config),
        )

    def _read_mask(self, name: str, count: int, seed: int | None, density: float | None) -> Mask:
        shape = self._shapes[name]
        if seed is not None and density is not None:
            # Compare the counts before drawing: a file can't request more memory than it has
            # values.
            if count_entries(shape, density) != count:
                expected = count_entries(shape, density)
                raise BadAdapter(self._path, f"{name}: {count} values for {expected} entries")
            return draw_random_mask(seed=seed, name=name, shape=shape, density=density)
        mask: Mask
        if f"{name}.rows" in self._remaining:
            rows = self._read_indices(f"{name}.rows", below=shape[0])
            mask = BlockMask(shape, rows, self._read_indices(f"{name}.columns", below=shape[1]))
        else:
            mask = EntryMask(
                shape, self._read_indices(f"{name}.positions", below=shape[0] * shape[1])
            )
        if mask.nnz != count:
            raise BadAdapter(self._path, f"{name}: {count} values for {mask.nnz} entries")
        return mask

    def _read_factor_mask(self) -> FactorMaskRule | None:
        stored = self._config.get("factor_mask")
        if stored is None:
            return None
        if stored["kind"] not in get_args(FactorMaskKind):
            raise BadAdapter(self._path, f"its factors have an unknown mask, {stored['kind']!r}")
        return FactorMaskRule(stored["kind"], float(stored["density"]), int(stored["seed"]))

    def _read_factors(
        self, name: str, sparse: bool, rule: FactorMaskRule | None
    ) -> tuple[Tensor, Tensor] | None:
        shape = self._shapes[name]
        if rule is not None:
            return self._read_seeded_factors(name, shape, rule)
        if sparse and f"{name}.a_RI.positions" in self._remaining:
            rank = int(self._config["rank"])
            stored_entries = self._remaining[f"{name}.a_RI.positions"].numel()
            a_shape, b_shape = get_factor_shapes(shape, rank)
            # A subtracted init can have twice the smaller side.
            if (
                not 1 <= rank <= 2 * min(get_expert_shape(shape))
                or math.prod(a_shape) > MAX_FACTOR_SPARSITY * stored_entries
            ):
                raise BadAdapter(self._path, f"{name} has the invalid rank {rank}")
            a = self._read_sparse_factor(f"{name}.a_RI", a_shape)
            return a, self._read_sparse_factor(f"{name}.b_OR", b_shape)
        if f"{name}.a_RI" not in self._remaining:
            return None
        a_RI, b_OR = self._read_floats(f"{name}.a_RI", 2), self._read_floats(f"{name}.b_OR", 2)
        if (a_RI.shape, b_OR.shape) != get_factor_shapes(shape, b_OR.shape[1]):
            shapes = f"A {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}"
            raise BadAdapter(self._path, f"{name}: {shapes} do not fit {self._shapes[name]}")
        return a_RI, b_OR

    def _read_seeded_factors(
        self, name: str, shape: LayerShape, rule: FactorMaskRule
    ) -> tuple[Tensor, Tensor]:
        rank = int(self._config["rank"])
        if not 1 <= rank <= 2 * min(get_expert_shape(shape)):
            raise BadAdapter(self._path, f"{name} has the invalid rank {rank}")
        counts = count_trained_factors(rule.kind, shape, rank=rank, density=rule.density)
        values = [self._read_floats(f"{name}.{side}.values", 1) for side in ("a_RI", "b_OR")]
        for tensor, count in zip(values, counts, strict=True):
            # Before anything is drawn: a file can't request more memory than it has values.
            if tensor.numel() != count or count * MAX_FACTOR_SPARSITY < rank * max(shape):
                raise BadAdapter(self._path, f"{name}: {tensor.numel()} values for {count} entries")
        masks, factor_shapes = rule.draw(name, shape, rank), get_factor_shapes(shape, rank)
        a, b = map(expand_to_dense, values, masks, factor_shapes)
        return a, b

    def _read_sparse_factor(self, name: str, shape: tuple[int, int]) -> Tensor:
        positions = self._read_indices(f"{name}.positions", below=shape[0] * shape[1])
        values = self._read_floats(f"{name}.values", 1)
        if values.shape != positions.shape:
            raise BadAdapter(
                self._path, f"{name}: {values.numel()} values, {positions.numel()} positions"
            )
        return expand_to_dense(values, positions, shape)

    def _read_floats(self, name: str, dimensions: int) -> Tensor:
        tensor = self._remaining.pop(name)
        if tensor.ndim != dimensions or not tensor.is_floating_point():
            raise BadAdapter(
                self._path, f"{name} has the wrong type, {tensor.dtype} {tuple(tensor.shape)}"
            )
        return tensor.float()

    def _read_indices(self, name: str, *, below: int) -> Tensor:
        """Return ascending, distinct int64 indices below the limit."""
        indices = self._remaining.pop(name)
        if indices.ndim != 1 or indices.dtype not in (torch.int32, torch.int64):
            raise BadAdapter(
                self._path, f"{name} has the wrong type, {indices.dtype} {tuple(indices.shape)}"
            )
        indices = indices.long()
        ascending = bool((indices[1:] > indices[:-1]).all())
        if not ascending or int(indices[0]) < 0 or int(indices[-1]) >= below:
            raise BadAdapter(self._path, f"{name} is not ascending within 0 to {below - 1}")
        return indices
