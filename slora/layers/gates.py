"""Gates on the ranks of a low-rank update, pruned on a schedule: `scale B diag(g) A`.

O, I: the weight's rows and columns. R: the rank.

The scheme follows SoRA (Ding et al., 2023, arXiv 2311.11696): each rank has a gate, a proximal
step of the L1 norm (a soft threshold) shrinks the gates, and a gate that has reached zero stays
closed. SoRA fixes the threshold and accepts the rank that remains; here the schedule fixes the
rank, and the threshold is the smallest one that leaves no more gates open.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slora.layers.factors import split_experts
from slora.layers.lora import LoraLinear

PRUNING_SHARE = 2 / 3
"""Share of the stage's steps after which the last gate is pruned; the rest recovers the quality."""


class GatedLoraLinear(LoraLinear):
    """A LoRA layer with a trainable gate for each rank: `gate_R`, float32, initially one."""

    open_R: Tensor

    def __init__(self, base: Any, *, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        super().__init__(base, a_RI=a_RI, b_OR=b_OR, scale=scale)
        device = base.weight.device
        self.gate_R = nn.Parameter(torch.ones(self.rank, dtype=torch.float32, device=device))
        # A pruned gate stays closed even if the optimiser's momentum moves its value.
        ones = torch.ones(self.rank, dtype=torch.float32, device=device)
        self.register_buffer("open_R", ones, persistent=False)

    def get_factors(self) -> tuple[Tensor, Tensor]:
        return self.a_RI, self.b_OR * (self.gate_R * self.open_R)


def count_open_gates(step: int, *, steps: int, rank: int, density: float) -> int:
    """Return how many gates may be open after `step`: cubic from `rank` to `density * rank`."""
    final_rank = max(1, round(density * rank))
    progress = min(1.0, step / max(1.0, PRUNING_SHARE * steps))
    return final_rank + round((rank - final_rank) * (1 - progress) ** 3)


def shrink_gates(gate_R: Tensor, importance_R: Tensor, *, keep: int) -> Tensor:
    """Return the gates after the proximal step that leaves at most `keep` of them open.

    `importance_R`: the contribution of each rank, `|g| ||B_r|| ||A_r||`; a gate alone would ignore
    a factor that compensates for it. The threshold is that of the largest rank to be pruned, in
    units of the gate: pruned gates become zero, the others lose the same share of their value.
    """
    if keep >= int((importance_R > 0).sum()):
        return torch.where(importance_R > 0, gate_R, torch.zeros_like(gate_R))
    order = torch.sort(importance_R, descending=True, stable=True).indices
    threshold = importance_R[order[keep]]
    share = torch.clamp(1 - threshold / importance_R.clamp_min(1e-30), min=0.0)
    share[order[keep:]] = 0.0
    return gate_R * share


def measure_importance(gate_R: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """Return the Frobenius norm of each rank's part of the update, without the scale, `[R]`.

    A rank of fused experts has one gate for all of them.
    """
    energies = [
        a.float().square().sum(1) * b.float().square().sum(0)
        for a, b in split_experts((a_RI, b_OR))
    ]
    norms: Tensor = gate_R.abs() * torch.stack(energies).sum(0).sqrt()
    return norms
