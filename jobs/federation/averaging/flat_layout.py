"""What is trained, as one flat vector that all sides of a federation cut alike.

n: numbers that are trained, the head's with them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class VectorLayout:
    """The trained tensors in their order, and where each lies in a vector of length n."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def count(self) -> int:
        """n."""
        return sum(self.sizes)

    def digest(self, extra: str = "") -> str:
        """SHA-256 of names, shapes and what else has to be agreed on."""
        text = repr((self.names, self.shapes, extra))
        return hashlib.sha256(text.encode()).hexdigest()

    def split_by_name(self, vector_n: Tensor) -> dict[str, Tensor]:
        """The vector cut by tensor, as views in their shapes."""
        parts = torch.split(vector_n, list(self.sizes))
        pieces = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.view(shape) for name, shape, part in pieces}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors of these names as one vector, float32 `[n]` on the CPU. A copy."""
        parts = [tensors[name].detach().float().cpu().flatten() for name in self.names]
        return torch.cat(parts) if parts else torch.empty(0)


def make_layout(tensors: Mapping[str, Tensor]) -> VectorLayout:
    """Of tensors by name, in their order."""
    shapes = tuple(tuple(tensor.shape) for tensor in tensors.values())
    return VectorLayout(tuple(tensors), shapes)


def to_bytes(vector_n: Tensor) -> bytes:
    """A vector of float32 as it travels whole."""
    return vector_n.detach().cpu().numpy().astype("<f4", copy=False).tobytes()


def to_vector(data: bytes, layout: VectorLayout) -> Tensor:
    """What `to_bytes` made of a vector of ours, of this layout. A copy."""
    vector_n = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    assert vector_n.numel() == layout.count
    return vector_n
