"""What each stage puts into the model, and what is left in it when the stage is over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from jobs.spec.schema import MethodSection
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.install import WriteContext, install_low_rank, install_sparse
from slora.masks.mask import Mask


def install_sparse_stage(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    """The sparse stage: a vector of zeros for each layer's mask."""
    install_sparse(model, masks)


def install_low_rank_stage(
    model: nn.Module,
    inits: Mapping[str, LowRankInit],
    masks: Mapping[str, Mask] | None,
    method: MethodSection,
    *,
    seed: int,
    gather_for_writing: WriteContext,
) -> None:
    """The low-rank stage: factors from their starts, under masks or gates where the spec says."""
    install_low_rank(
        model,
        inits,
        scale=method.scale,
        masks=masks,
        factor_density=method.factor_density if method.factor_pruning == "fixed" else 1.0,
        gates=method.factor_density < 1 and method.factor_pruning == "gates",
        seed=seed,
        writable=gather_for_writing,
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts saved trainable tensors into a model that DeepSpeed does not hold yet."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
