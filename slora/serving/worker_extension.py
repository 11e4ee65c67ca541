"""What a vLLM worker does for sparse adapters: `--worker-extension-cls` names the class.

vLLM's own loader of checkpoint patches maps names, slices for tensor parallelism and writes into
fused weights. It does not undo a failure: the caller serves nothing until a later swap succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from slora.serving.weight_patches import TensorPatch, iter_swap, list_tensors


class SparseWeightWorker:
    """Mixed into vLLM's worker class; the methods are called by `collective_rpc`."""

    get_model: Any
    """The worker's own method, which returns the model."""

    def rehearse_patches(self, file: str) -> list[str]:
        """Run each tensor of a patch file through the loader without a value, so that nothing is
        written, and return the names that this worker has no weight for. Raise what vLLM raises.
        """
        nothing = torch.empty(0, dtype=torch.int64)
        return self._load_patches(
            TensorPatch(name, shape, nothing, torch.empty(0))
            for name, shape in list_tensors(Path(file)).items()
        )

    def swap_patches(self, undo: list[str], apply: str | None) -> list[str]:
        """Write the old values of the files in `undo` and the new ones of `apply` over them.
        Return the names of tensors that this worker has no weight for. Raise what vLLM raises.
        """
        files = [Path(file) for file in undo]
        return self._load_patches(iter_swap(files, None if apply is None else Path(apply)))

    def _load_patches(self, patches: Iterable[TensorPatch]) -> list[str]:
        """Write the patches, and return the names of those that no parameter took."""
        from vllm.model_executor.model_loader.checkpoint_weight_patch import (
            CheckpointWeightPatch,
            load_checkpoint_weight_patches,
        )

        model = self.get_model()
        device = next(model.parameters()).device
        missing = []
        # A call for each tensor, since fused tensors report one name: none means not loaded.
        for patch in patches:
            values, positions = patch.values.to(device), patch.positions.to(device)
            loaded = load_checkpoint_weight_patches(
                model,
                [CheckpointWeightPatch(patch.name, patch.shape, values.dtype, values, positions)],
                validate_unique_indices=False,  # a mask's positions are distinct
            )
            if not loaded:
                missing.append(patch.name)
        return missing
