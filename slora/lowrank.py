"""The low-rank layer: `y = x W^T + b + (alpha / r) x A^T B^T`, and how A is drawn at the start."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from slora.errors import BadRank


class LoraLinear(nn.Module):
    """A frozen linear layer with factors `a_RI [r, in]` and `b_OR [out, r]`, float32."""

    def __init__(self, base: nn.Linear, *, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, scale
        if a_RI.shape[1] != base.in_features or b_OR.shape != (base.out_features, a_RI.shape[0]):
            shapes = f"A {tuple(a_RI.shape)}, B {tuple(b_OR.shape)}"
            layer = (base.out_features, base.in_features)
            raise ValueError(f"{shapes} do not fit a layer of {layer}")
        self.weight, self.bias = base.weight, base.bias
        # In a tuple, so that the layer it stands in for is no child of it.
        self.replaced = (base,)
        device = base.weight.device
        self.a_RI = nn.Parameter(a_RI.to(device=device, dtype=torch.float32, copy=True))
        self.b_OR = nn.Parameter(b_OR.to(device=device, dtype=torch.float32, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        linear = nn.functional.linear
        low = linear(linear(x, self.a_RI.to(x.dtype)), self.b_OR.to(x.dtype))
        return linear(x, self.weight, self.bias) + self.scale * low

    def extra_repr(self) -> str:
        rank = self.a_RI.shape[0]
        return f"in={self.in_features}, out={self.out_features}, rank={rank}, scale={self.scale}"


def fresh_factors(
    *, seed: int, name: str, shape: tuple[int, int], rank: int
) -> tuple[Tensor, Tensor]:
    """LoRA's own start: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero.

    Drawn from (seed, layer's name), so that every rank has the same and no two layers do.
    """
    out_features, in_features = shape
    if not 1 <= rank <= min(shape):
        raise BadRank(rank, shape, name)
    key = hashlib.sha256(f"{seed}\0{name}\0lora".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    bound = 1 / math.sqrt(in_features)
    a_RI = (2 * torch.rand(rank, in_features, generator=generator) - 1) * bound
    return a_RI, torch.zeros(out_features, rank)
