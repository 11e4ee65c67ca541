"""The kernels that are made of torch's own operations: the sampled product, and dense slabs.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slora.kernels.pattern import EntryPattern

SLAB_BYTES = 1 << 26
"""Bytes of the part of the dense product that is held at once: 64 MiB hold a layer of 2,048 x 8,192
in float32 whole, and more rows at once are no faster."""
HAS_SAMPLED_PRODUCT_ON_CPU: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
"""Without MKL, torch has no sampled product on the CPU."""


def multiply_by_slabs(grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
    """Return the entries `[Z]` from dense products of some rows at a time, in the dtype of x."""
    rows, width = pattern.shape
    slab_rows = max(1, SLAB_BYTES // (width * x_NI.element_size()))
    if slab_rows >= rows:
        return (grad_NO.t() @ x_NI).view(-1).index_select(0, pattern.positions)
    parts = []
    bounds = [*pattern.row_starts[::slab_rows].tolist(), pattern.nnz]
    for number, first in enumerate(range(0, rows, slab_rows)):
        slab = grad_NO[:, first : first + slab_rows].t() @ x_NI
        positions = pattern.positions[bounds[number] : bounds[number + 1]] - first * width
        parts.append(slab.view(-1).index_select(0, positions))
    return torch.cat(parts)


def multiply_sampled(grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
    """Return the entries `[Z]` as dot products over the tokens, in float32 (or float64).

    Both operands are copied in float32 with contiguous tokens: torch would copy any other layout
    at half the speed.
    """
    dtype = torch.promote_types(grad_NO.dtype, torch.float32)
    grad_ON, x_IN = (
        tensor.t().to(dtype, memory_format=torch.contiguous_format) for tensor in (grad_NO, x_NI)
    )
    entries = torch.sparse_csr_tensor(
        pattern.row_starts,
        pattern.columns,
        grad_ON.new_zeros(pattern.nnz),
        pattern.shape,
        check_invariants=False,
    )
    sampled = torch.sparse.sampled_addmm(
        entries, grad_ON.contiguous(), x_IN.contiguous().t(), beta=0.0
    )
    values: Tensor = sampled.values()
    return values
