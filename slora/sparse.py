"""The sparse linear layer: `y = x (W + D)^T + b`, where D lives in one compact vector of values.

O, I: the weight's rows and columns. N: tokens. Z: entries of the mask.

W is the frozen base. For the length of one matrix product the values are added into W's own
storage and the old entries put back afterwards, bit for bit: no dense delta, no copy of W, and no
dense gradient. The gradient of the values is `g^T x` at the masked entries and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.mask import Mask

_HAS_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


class SparseLinear(nn.Module):
    """A frozen linear layer whose masked entries move by `values`, float32 `[Z]`, zero at first."""

    positions: Tensor
    row_starts: Tensor
    columns: Tensor

    def __init__(self, base: nn.Linear, mask: Mask) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        if mask.shape != (self.out_features, self.in_features):
            layer = (self.out_features, self.in_features)
            raise ValueError(f"a mask of {mask.shape} for a layer of {layer}")
        self.weight, self.bias = base.weight, base.bias
        # In a tuple, so that the layer it stands in for is no child of it.
        self.replaced = (base,)
        device = base.weight.device
        self.values = nn.Parameter(torch.zeros(mask.nnz, dtype=torch.float32, device=device))
        # Buffers follow the module to its device; a seed regenerates them, so they are not saved.
        row_starts, columns = _compressed_rows(mask)
        self.register_buffer("positions", mask.positions.to(device), persistent=False)
        self.register_buffer("row_starts", row_starts.to(device), persistent=False)
        self.register_buffer("columns", columns.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _SparseProduct.apply(  # type: ignore[no-untyped-call]
            x, self.values, self.weight, self.bias, self.positions, self.row_starts, self.columns
        )
        return y

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, entries={self.values.numel()}"


def dense_delta(values: Tensor, mask: Mask) -> Tensor:
    """D, float32 `[O, I]`: `values` at the mask's entries, zero elsewhere."""
    delta = torch.zeros(mask.shape[0] * mask.shape[1], dtype=torch.float32)
    delta[mask.positions] = values.detach().float().cpu()
    return delta.view(mask.shape)


def _compressed_rows(mask: Mask) -> tuple[Tensor, Tensor]:
    """The mask as CSR: starts of the rows `[O + 1]`, columns `[Z]`."""
    rows = mask.positions // mask.shape[1]
    starts = torch.zeros(mask.shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=mask.shape[0]).cumsum(0)
    return starts, mask.positions % mask.shape[1]


@contextmanager
def _moved(weight: Tensor, values: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """W + D in W's own storage; on leaving, W's entries are the same bits as before."""
    # `.data` keeps autograd's version counter out of it: what it saved is the same W again.
    flat = weight.data.view(-1)
    before = flat[positions]
    # Added in the wider of the two types: a bfloat16 base computes with round(W + D), as full
    # mixed-precision training computes with its rounded float32 weights.
    flat[positions] = (before + values.to(torch.promote_types(before.dtype, values.dtype))).to(
        flat.dtype
    )
    try:
        yield weight.data
    finally:
        flat[positions] = before


class _SparseProduct(torch.autograd.Function):
    """The product above, with the gradients of x, of the values and of the bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None,
                positions: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:  # fmt: skip
        # Saving the parameters themselves, not copies, lets ZeRO-3 gather them again for backward.
        ctx.save_for_backward(x, values, weight, positions, row_starts, columns)
        with _moved(weight, values, positions) as moved:
            return nn.functional.linear(x, moved.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, weight, positions, row_starts, columns = ctx.saved_tensors
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            with _moved(weight, values, positions) as moved:
                grad_x = grad @ moved.to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            grad_values = masked_product(grad_NO, x_NI, positions, row_starts, columns)
            grad_values = grad_values.to(values.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_values, None, grad_bias, None, None, None


def masked_product(
    grad_NO: Tensor, x_NI: Tensor, positions: Tensor, row_starts: Tensor, columns: Tensor
) -> Tensor:
    """`(grad^T x)` at the masked entries only, `[Z]`, in float32 (float64 for float64)."""
    dtype = torch.float64 if grad_NO.dtype == torch.float64 else torch.float32
    grad_NO, x_NI = grad_NO.to(dtype), x_NI.to(dtype)
    if grad_NO.device.type == "cpu" and not _HAS_MKL:
        # Without MKL there is no sampled product on the CPU: one dense product, then a gather.
        return (grad_NO.t() @ x_NI).view(-1)[positions]
    shape = (grad_NO.shape[1], x_NI.shape[1])
    zeros = torch.zeros(columns.numel(), dtype=dtype, device=grad_NO.device)
    pattern = torch.sparse_csr_tensor(row_starts, columns, zeros, shape, check_invariants=False)
    sampled = torch.sparse.sampled_addmm(pattern, grad_NO.t().contiguous(), x_NI, beta=0.0)
    values: Tensor = sampled.values()
    return values
