"""The kernel for GPUs that reads tokens as they lie, in Triton.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.

A program computes some entries: it walks over the tokens and adds the products of the two numbers
that belong to each entry, in float32. Nothing is transposed, converted or held beside the operands.
Triton comes with torch for GPUs; its interpreter runs the same code on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slora.kernels.pattern import EntryPattern

ENTRIES, TOKENS = 64, 64
"""Entries of a program, and tokens that it reads at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _add_entries(  # type: ignore[no-untyped-def]
    grad, x, positions, values, tokens, entries, width, grad_stride_n, grad_stride_o, x_stride_n,
    x_stride_i, ENTRIES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    is_entry = entry < entries
    position = tl.load(positions + entry, mask=is_entry, other=0)
    row, column = position // width, position % width
    total = tl.zeros((ENTRIES,), dtype=tl.float32)
    for first in range(0, tokens, TOKENS):
        token = (first + tl.arange(0, TOKENS)).to(tl.int64)
        is_inside = (token < tokens)[:, None] & is_entry[None, :]
        grad_at = token[:, None] * grad_stride_n + row[None, :] * grad_stride_o
        x_at = token[:, None] * x_stride_n + column[None, :] * x_stride_i
        grad_values = tl.load(grad + grad_at, mask=is_inside, other=0.0).to(tl.float32)
        x_values = tl.load(x + x_at, mask=is_inside, other=0.0).to(tl.float32)
        total += tl.sum(grad_values * x_values, axis=0)
    tl.store(values + entry, total, mask=is_entry)


def multiply_by_entries(grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
    """Return the entries `[Z]`, float32, from operands of any layout in a floating dtype."""
    values = torch.empty(pattern.nnz, dtype=torch.float32, device=x_NI.device)
    _add_entries[(triton.cdiv(pattern.nnz, ENTRIES),)](
        grad_NO, x_NI, pattern.positions, values, x_NI.shape[0], pattern.nnz, pattern.shape[1],
        *grad_NO.stride(), *x_NI.stride(), ENTRIES, TOKENS,
    )  # fmt: skip
    return values
