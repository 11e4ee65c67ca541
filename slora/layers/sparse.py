"""The sparse linear layer `y = x (W + D)^T + b`, where D is stored as one compact vector of values.

O, I: the weight's rows and columns, out and in. N: tokens. Z: entries of the mask. P, Q: rows and
columns of a block.

W is the frozen base. For the duration of one matrix product the values are added into W's own
storage, and the original entries are restored afterwards, bit for bit: no dense delta, no copy of
W, and no dense gradient. Only one thread at a time may therefore run a model with such layers;
serve a merged model instead. The gradient of the values is `g^T x` at the masked entries only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.layers.base_layers import get_features, is_transposed, multiply, multiply_back
from slora.layers.experts import AddedEntries
from slora.masks.mask import BlockMask, Mask

_HAS_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]

MAX_SAMPLED_DENSITY = {"cpu": 0.12, "cuda": 0.05}
"""Density up to which the sampled product is faster. Above it, dense
slabs of a few rows are multiplied and gathered. Measured on 2 cores (AVX-512), N = 512, in ms:

    density          0.01    0.03    0.05    0.10    0.20   dense
    768 x 768         0.6     1.2     1.5     2.2     3.5     3.1
    768 x 2048        1.4     3.1     4.5     5.7    10.5     8.7
    2048 x 2048       3.2     6.3     7.7    13.9    26.9    25.5

The figure for CUDA is an assumption until it is measured.
"""
SLABS = 8
"""Number of slabs that the dense computation divides a matrix into; it holds one at a time."""


class SparseLinear(nn.Module):
    """A frozen linear layer with trainable `values` on its mask, float32 `[Z]`, initially zero.

    The base is an `nn.Linear`, transformers' `Conv1D`, which stores its weight as `[I, O]`, or
    fused experts: those ask for the adapted weight, and this layer's own forward is not used.
    """

    storage_positions: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, base: Any, mask: Mask) -> None:
        super().__init__()
        self.out_features, self.in_features = layer_shape = get_features(base)
        if mask.shape != layer_shape:
            raise ValueError(f"a mask of shape {mask.shape} does not fit a layer of {layer_shape}")
        self.weight, self.bias = base.weight, base.bias
        # The tuple keeps the wrapped layer from becoming a child module.
        self.wrapped = (base,)
        self.conv1d, self.block = is_transposed(base), isinstance(mask, BlockMask)
        device = base.weight.device
        self.values = nn.Parameter(torch.zeros(mask.nnz, dtype=torch.float32, device=device))
        # Buffers follow the module to its device. They can be recomputed from the mask, so they
        # are not saved.
        rows, columns = (
            (mask.rows, mask.columns) if isinstance(mask, BlockMask) else _compress_rows(mask)
        )
        self.register_buffer(
            "storage_positions",
            find_storage_positions(mask, self.conv1d, experts=layer_shape.experts).to(device),
            persistent=False,
        )
        self.register_buffer("rows", rows.to(device), persistent=False)
        self.register_buffer("columns", columns.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        product = _BlockProduct if self.block else _EntriesProduct
        # A view that a Function itself returns may not be changed in place, as some models do.
        y_NO: Tensor = product.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features),
            self.values,
            self.weight,
            self.bias,
            self.storage_positions,
            self.rows,
            self.columns,
            self.conv1d,
        )
        return y_NO.view(*x.shape[:-1], self.out_features)

    def compute_weight(self) -> Tensor:
        """Return W + D in the layout of W."""
        weight: Tensor = AddedEntries.apply(  # type: ignore[no-untyped-call]
            self.values, self.weight, self.storage_positions
        )
        return weight

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, entries={self.values.numel()}"


def make_dense_delta(values: Tensor, mask: Mask) -> Tensor:
    """Return D, float32 `[O, I]`: `values` at the mask's entries, zero elsewhere."""
    delta = torch.zeros(mask.shape[0] * mask.shape[1], dtype=torch.float32)
    delta[mask.positions] = values.detach().float().cpu()
    return delta.view(mask.shape)


def _compress_rows(mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the mask in compressed rows: the row starts `[O + 1]` and the columns `[Z]`, int32."""
    rows = mask.positions // mask.shape[1]
    starts = torch.zeros(mask.shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=mask.shape[0]).cumsum(0)
    return starts.int(), (mask.positions % mask.shape[1]).int()


def find_storage_positions(mask: Mask, transposed: bool, *, experts: int = 1) -> Tensor:
    """Return the mask's positions in the weight's storage, int64 `[Z]`, in the values' order."""
    if not transposed:
        return mask.positions
    in_features, out_features = mask.shape[1], mask.shape[0] // experts
    rows, columns = mask.positions // in_features, mask.positions % in_features
    expert, row = rows // out_features, rows % out_features
    return (expert * in_features + columns) * out_features + row


@contextmanager
def _add_values(weight: Tensor, values: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """Yield W + D in W's own storage, and restore the same bits of W on exit."""
    # `.data` leaves autograd's version counter alone: the saved tensor holds the same W again.
    flat = weight.data.view(-1)
    original = flat.index_select(0, positions)
    # Add in the wider of the two dtypes: a bfloat16 base computes with round(W + D), as full
    # mixed-precision training computes with its rounded float32 weights.
    sum_dtype = torch.promote_types(original.dtype, values.dtype)
    flat.index_copy_(0, positions, (original.to(sum_dtype) + values.to(sum_dtype)).to(flat.dtype))
    try:
        yield weight.data
    finally:
        flat.index_copy_(0, positions, original)


class _EntriesProduct(torch.autograd.Function):
    """The product for any set of entries, with the gradients of x, the values and the bias.

    x is `[N, I]`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None,
        positions: Tensor, rows: Tensor, columns: Tensor, conv1d: bool,
    ) -> Tensor:  # fmt: skip
        # Saving the parameters themselves, not copies, lets ZeRO-3 gather them again for backward.
        ctx.save_for_backward(x, values, weight, positions, rows, columns)
        ctx.conv1d = conv1d
        with _add_values(weight, values, positions) as shifted:
            return multiply(x, shifted, bias, conv1d=conv1d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, weight, positions, rows, columns = ctx.saved_tensors
        grad_x, grad_bias = _compute_other_gradients(ctx, grad, values, weight, positions)
        grad_values = None
        if ctx.needs_input_grad[1]:
            grad_values = compute_masked_product(grad, x, rows, columns).to(values.dtype)
        return grad_x, grad_values, None, grad_bias, None, None, None, None


class _BlockProduct(torch.autograd.Function):
    """The product for rows x columns: only the block's columns of x `[N, I]` are saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None,
        positions: Tensor, rows: Tensor, columns: Tensor, conv1d: bool,
    ) -> Tensor:  # fmt: skip
        with _add_values(weight, values, positions) as shifted:
            y = multiply(x, shifted, bias, conv1d=conv1d)
        x_Q = None
        if ctx.needs_input_grad[1]:
            x_Q = x if columns.numel() == x.shape[-1] else x.index_select(-1, columns)
        ctx.save_for_backward(x_Q, values, weight, positions, rows)
        ctx.conv1d = conv1d
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_Q, values, weight, positions, rows = ctx.saved_tensors
        grad_x, grad_bias = _compute_other_gradients(ctx, grad, values, weight, positions)
        grad_values = None
        if ctx.needs_input_grad[1]:
            grad_P = grad if rows.numel() == grad.shape[-1] else grad.index_select(-1, rows)
            dtype = _choose_sum_dtype(grad.dtype)
            grad_values = (grad_P.to(dtype).t() @ x_Q.to(dtype)).flatten().to(values.dtype)
        return grad_x, grad_values, None, grad_bias, None, None, None, None


def _compute_other_gradients(
    ctx: Any, grad: Tensor, values: Tensor, weight: Tensor, positions: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the bias."""
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        with _add_values(weight, values, positions) as shifted:
            grad_x = multiply_back(grad, shifted, conv1d=ctx.conv1d)
    if ctx.needs_input_grad[3]:
        grad_bias = grad.sum(0)
    return grad_x, grad_bias


def compute_masked_product(
    grad_NO: Tensor, x_NI: Tensor, row_starts: Tensor, columns: Tensor
) -> Tensor:
    """Return `(grad^T x)` at the entries of a compressed mask, `[Z]`, float32 (or float64)."""
    dtype = _choose_sum_dtype(grad_NO.dtype)
    grad_NO, x_NI = grad_NO.to(dtype), x_NI.to(dtype)
    device_type, size = grad_NO.device.type, grad_NO.shape[1] * x_NI.shape[1]
    # Without MKL, torch has no sampled product on the CPU.
    use_slabs = device_type == "cpu" and not _HAS_MKL
    if use_slabs or columns.numel() > MAX_SAMPLED_DENSITY.get(device_type, 0.0) * size:
        return _multiply_by_slabs(grad_NO, x_NI, row_starts, columns)
    shape = (grad_NO.shape[1], x_NI.shape[1])
    pattern = torch.sparse_csr_tensor(
        row_starts, columns, grad_NO.new_zeros(columns.numel()), shape, check_invariants=False
    )
    # In both operands the tokens are contiguous: an entry is then one plain dot product. Torch
    # copies any other layout at half the speed.
    right = _LAST_TRANSPOSE.get_transposed(x_NI).t() if device_type == "cpu" else x_NI
    sampled = torch.sparse.sampled_addmm(pattern, grad_NO.t().contiguous(), right, beta=0.0)
    values: Tensor = sampled.values()
    return values


class _TransposeCache:
    """Cache of the last transposed input: q, k and v share one input, and so do gate and up.

    The cache holds the input, so that no other tensor can reuse its memory while it is cached.
    """

    MAX_BYTES = 1 << 25
    """Size of the largest cached input; a larger one is not worth holding until the next call."""

    def __init__(self) -> None:
        self._entry: tuple[Tensor, int, Tensor] | None = None

    def get_transposed(self, x_NI: Tensor) -> Tensor:
        """Return `x^T`, contiguous, `[I, N]`."""
        if self._entry is not None:
            x, version, transposed = self._entry
            is_same_storage = x.data_ptr() == x_NI.data_ptr() and x.stride() == x_NI.stride()
            if is_same_storage and x.shape == x_NI.shape and x.dtype == x_NI.dtype and (
                x_NI._version == version
            ):  # fmt: skip
                return transposed
        transposed = x_NI.t().contiguous()
        is_cacheable = x_NI.numel() * x_NI.element_size() <= self.MAX_BYTES
        self._entry = (x_NI, x_NI._version, transposed) if is_cacheable else None
        return transposed


_LAST_TRANSPOSE = _TransposeCache()


def _multiply_by_slabs(
    grad_NO: Tensor, x_NI: Tensor, row_starts: Tensor, columns: Tensor
) -> Tensor:
    """Compute the same from dense products of a few rows at a time, to save memory."""
    rows, width = grad_NO.shape[1], x_NI.shape[1]
    step = -(-rows // SLABS)
    parts, starts = [], row_starts.long()
    for first in range(0, rows, step):
        last = min(first + step, rows)
        slab_entries = slice(int(starts[first]), int(starts[last]))
        slab = grad_NO[:, first:last].t() @ x_NI
        counts = starts[first + 1 : last + 1] - starts[first:last]
        row = torch.repeat_interleave(torch.arange(last - first, device=starts.device), counts)
        parts.append(slab.view(-1).index_select(0, row * width + columns[slab_entries].long()))
    return torch.cat(parts)


def _choose_sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the gradients of float32 parameters are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
