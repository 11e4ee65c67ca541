"""Lay out the trained tensors as one flat vector, the same way on all sides of a federation.

n: numbers that are trained, those of the head included.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class VectorLayout:
    """Names and shapes of the trained tensors, in the order of a vector of length n."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    head: frozenset[str] = frozenset()
    """Names of the tensors of the head, which has a learning rate of its own."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many numbers each tensor has."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def groups(self) -> tuple[int, ...]:
        """Return the group of each tensor, as `upload_size.GROUPS` counts them."""
        return tuple(int(name in self.head) for name in self.names)

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Return how many numbers the adapter and the head have."""
        parts = zip(self.names, self.sizes, strict=True)
        head = sum(size for name, size in parts if name in self.head)
        return self.count - head, head

    @property
    def count(self) -> int:
        """Return n."""
        return sum(self.sizes)

    def digest(self, extra: str = "") -> str:
        """Return the SHA-256 of the layout and whatever else must be the same on all sides."""
        text = repr((self.names, self.shapes, self.groups, extra))
        return hashlib.sha256(text.encode()).hexdigest()

    def split_by_name(self, vector_n: Tensor) -> dict[str, Tensor]:
        """Return the parts of the vector by name, as views in the shapes of the tensors."""
        parts = torch.split(vector_n, list(self.sizes))
        pieces = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.view(shape) for name, shape, part in pieces}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a copy of the tensors as one vector, float32 `[n]` on the CPU."""
        parts = [tensors[name].detach().float().cpu().flatten() for name in self.names]
        return torch.cat(parts) if parts else torch.empty(0)


def make_layout(tensors: Mapping[str, Tensor], head: Iterable[str] = ()) -> VectorLayout:
    """Return the layout of tensors by name, in their order. `head`: names of those of the head."""
    shapes = tuple(tuple(tensor.shape) for tensor in tensors.values())
    return VectorLayout(tuple(tensors), shapes, frozenset(head))


def to_bytes(vector_n: Tensor) -> bytes:
    """Return the uncompressed bytes of a float32 vector."""
    return vector_n.detach().cpu().numpy().astype("<f4", copy=False).tobytes()


def to_vector(data: bytes, layout: VectorLayout) -> Tensor:
    """Return a copy of the vector that `to_bytes` has encoded. Only for trusted bytes."""
    vector_n = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    assert vector_n.numel() == layout.count
    return vector_n
