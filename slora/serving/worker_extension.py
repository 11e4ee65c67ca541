"""What a vLLM worker does for sparse adapters: `--worker-extension-cls` names the class.

vLLM's own loader of checkpoint patches maps names, slices for tensor parallelism and writes into
fused weights. It does not undo a failure: the caller serves nothing until a later swap succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slora.serving.weight_patches import TensorPatch, iter_swap, list_tensors

BATCH_ENTRIES = 1 << 23
"""Entries of the checkpoint's tensors in one call of the loader, which stages them whole: a call
walks over all modules, and a larger batch no longer fits the caches.
"""


class SparseWeightWorker:
    """Mixed into vLLM's worker class; the methods are called by `collective_rpc`."""

    get_model: Any
    """The worker's own method, which returns the model."""

    def rehearse_patches(self, file: str) -> list[str]:
        """Run each tensor of a patch file through the loader without a value, so that nothing is
        written, and return the names that this worker has no weight for. Raise what vLLM raises.
        """
        nothing = torch.empty(0, dtype=torch.int64)
        # A call for each: the loader reports parameters, and several tensors may be fused in one.
        return [
            name
            for name, shape in list_tensors(Path(file)).items()
            if not self._load_patches([TensorPatch(name, shape, nothing, torch.empty(0))])
        ]

    def swap_patches(self, undo: list[str], apply: str | None) -> None:
        """Write the old values of the files in `undo` and the new ones of `apply` over them.

        Every tensor of theirs was rehearsed. Raise what vLLM raises.
        """
        batch, size = list[TensorPatch](), 0
        files = [Path(file) for file in undo]
        for patch in iter_swap(files, None if apply is None else Path(apply)):
            batch.append(patch)
            size += math.prod(patch.shape)
            if size >= BATCH_ENTRIES:
                self._load_patches(batch)
                batch, size = [], 0
        self._load_patches(batch)

    def _load_patches(self, patches: Sequence[TensorPatch]) -> set[str]:
        """Write the patches, and return the names of the parameters that took them."""
        from vllm.model_executor.model_loader.checkpoint_weight_patch import (
            CheckpointWeightPatch,
            load_checkpoint_weight_patches,
        )

        model = self.get_model()
        device = next(model.parameters()).device
        parameters: set[str] = load_checkpoint_weight_patches(
            model,
            [
                CheckpointWeightPatch(
                    patch.name,
                    patch.shape,
                    patch.values.dtype,
                    patch.values.to(device),
                    patch.positions.to(device),
                )
                for patch in patches
            ],
            validate_unique_indices=False,  # a mask's positions are distinct
        )
        return parameters
