"""A layer of which sparse values and low-rank factors are trained together (RoSA, 2401.04679)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slora.layers.lora import init_factors
from slora.layers.sparse import SparseLinear


class JointLinear(nn.Module):
    """`y = x (W + D)^T + b + scale x A^T B^T`, with the values of D, A `[R, I]` and B `[O, R]`."""

    def __init__(self, sparse: SparseLinear, *, rank: int, scale: float, seed: int, name: str):
        super().__init__()
        shape = (sparse.out_features, sparse.in_features)
        a_RI, b_OR = init_factors(seed=seed, name=name, shape=shape, rank=rank)
        self.sparse, self.scale = sparse, scale
        self.a_RI, self.b_OR = nn.Parameter(a_RI), nn.Parameter(b_OR)

    def forward(self, x: Tensor) -> Any:
        h = nn.functional.linear(x, self.a_RI.to(x.dtype))
        added = nn.functional.linear(h, (self.scale * self.b_OR).to(x.dtype))
        return torch.add(self.sparse(x), added)
