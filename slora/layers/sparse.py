"""The sparse linear layer `y = x (W + D)^T + b`, where D is stored as one compact vector of values.

O, I: the weight's rows and columns, out and in. N: tokens. Z: entries of the mask. P, Q: rows and
columns of a block.

W is the frozen base. The layer keeps W's own entries on the mask beside it, writes W + D over them
in W's own storage for its products, and puts them back, bit for bit, when it is removed: no
dense delta, no copy of W, and no dense gradient. Only one thread at a time may therefore run a
model with such layers; serve a merged model instead. The gradient of the values is `g^T x` at the
masked entries only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.kernels.choice import KernelChoices
from slora.kernels.pattern import EntryPattern, compress_rows
from slora.layers.base_layers import get_features, is_transposed, multiply, multiply_back
from slora.layers.experts import AddedEntries
from slora.masks.mask import BlockMask, Mask


class SparseLinear(nn.Module):
    """A frozen linear layer with trainable `values` on its mask, float32 `[Z]`, initially zero.

    The base is an `nn.Linear`, transformers' `Conv1D`, which stores its weight as `[I, O]`, or
    fused experts: those ask for the adapted weight, and this layer's own forward is not used.
    """

    storage_positions: Tensor
    positions: Tensor
    rows: Tensor
    columns: Tensor
    base_entries: Tensor
    """W's own entries on the mask, in its dtype, `[Z]`; empty until a sharded W is gathered."""

    def __init__(
        self,
        base: Any,
        mask: Mask,
        *,
        restores_at_once: bool = False,
    ) -> None:
        """`restores_at_once`: other modules read the same weight, so that its own entries must be
        back after each product.
        """
        super().__init__()
        self.out_features, self.in_features = layer_shape = get_features(base)
        if mask.shape != layer_shape:
            raise ValueError(f"a mask of shape {mask.shape} does not fit a layer of {layer_shape}")
        self.weight, self.bias = base.weight, base.bias
        # The tuple keeps the wrapped layer from becoming a child module.
        self.wrapped = (base,)
        self.conv1d, self.block = is_transposed(base), isinstance(mask, BlockMask)
        self.choices, self.restores_at_once = KernelChoices(), restores_at_once
        device = base.weight.device
        self.values = nn.Parameter(torch.zeros(mask.nnz, dtype=torch.float32, device=device))
        # Buffers follow the module to its device. They can be recomputed from the mask, so they
        # are not saved.
        if isinstance(mask, BlockMask):
            rows, columns = mask.rows, mask.columns
        else:
            pattern = compress_rows(mask)
            rows, columns = pattern.row_starts, pattern.columns
        positions = mask.positions.to(device)
        storage = positions
        if self.conv1d:
            storage = find_storage_positions(mask, True, experts=layer_shape.experts).to(device)
        self.register_buffer("storage_positions", storage, persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("rows", rows.to(device), persistent=False)
        self.register_buffer("columns", columns.to(device), persistent=False)
        self.register_buffer("base_entries", base.weight.new_empty(0), persistent=False)
        self.last_write: object | None = None
        """Stands for the sums that are in the weight, until others are written or W's entries."""

    def forward(self, x: Tensor) -> Tensor:
        product = _BlockProduct if self.block else _EntriesProduct
        # A view that a Function itself returns may not be changed in place, as some models do.
        y_NO: Tensor = product.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features), self.values, self.bias, self
        )
        return y_NO.view(*x.shape[:-1], self.out_features)

    def compute_weight(self) -> Tensor:
        """Return W + D in the layout of W."""
        weight: Tensor = AddedEntries.apply(  # type: ignore[no-untyped-call]
            self.values, self.weight, self.storage_positions
        )
        return weight

    def write_entries(self, values: Tensor) -> Tensor:
        """Write W + D over W's entries, and return the weight, without a gradient.

        May be repeated: the sum is always of W's own entries. A sharded weight is a new copy after
        each gather, so it is written again for each product.
        """
        # `.data` leaves autograd's version counter alone: what was saved is this same storage.
        weight: Tensor = self.weight.data
        flat = weight.view(-1)
        if not self.base_entries.numel():
            self.base_entries = flat[self.storage_positions]
        # Add in the wider of the two dtypes: a bfloat16 base computes with round(W + D), as full
        # mixed-precision training computes with its rounded float32 weights.
        sums = self.base_entries.to(torch.promote_types(flat.dtype, values.dtype)) + values
        # Twice to six times as fast as `index_copy_` on a CPU.
        flat.index_put_((self.storage_positions,), sums.to(flat.dtype))
        self.last_write = object()
        return weight

    def write_entries_again(self, values: Tensor, write: object | None) -> Tensor:
        """Do what `write_entries` does, unless the sums of this `last_write` are still there.

        Of the two writes of a step, the backward's is the one that is saved. A sharded weight was
        gathered anew since.
        """
        if write is None or write is not self.last_write or hasattr(self.weight, "ds_tensor"):
            return self.write_entries(values)
        weight: Tensor = self.weight.data
        return weight

    def end_product(self) -> None:
        """Put W's own entries back if they can't wait for the layer's removal."""
        shard = getattr(self.weight, "ds_tensor", None)
        # On a single rank a gathered weight is its own shard, and would keep the sums.
        if self.restores_at_once or (
            shard is not None
            and shard.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr()
        ):
            self.restore_entries()

    def restore_entries(self) -> None:
        """Put W's own entries back. Does nothing to a weight that is sharded or was not written."""
        flat = self.weight.data.view(-1)
        if self.base_entries.numel() and flat.numel():
            flat.index_put_((self.storage_positions,), self.base_entries)
        self.last_write = None

    def get_pattern(self) -> EntryPattern:
        """Return the mask's entries in compressed rows. Only for a layer without a block."""
        shape = (self.out_features, self.in_features)
        return EntryPattern(self.rows, self.columns, self.positions, shape)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, entries={self.values.numel()}"


def make_dense_delta(values: Tensor, mask: Mask) -> Tensor:
    """Return D, float32 `[O, I]`: `values` at the mask's entries, zero elsewhere."""
    delta = torch.zeros(mask.shape[0] * mask.shape[1], dtype=torch.float32)
    delta[mask.positions] = values.detach().float().cpu()
    return delta.view(mask.shape)


def find_storage_positions(mask: Mask, transposed: bool, *, experts: int = 1) -> Tensor:
    """Return the mask's positions in the weight's storage, int64 `[Z]`, in the values' order."""
    if not transposed:
        return mask.positions
    in_features, out_features = mask.shape[1], mask.shape[0] // experts
    rows, columns = mask.positions // in_features, mask.positions % in_features
    expert, row = rows // out_features, rows % out_features
    return (expert * in_features + columns) * out_features + row


class _EntriesProduct(torch.autograd.Function):
    """The product for any set of entries, with the gradients of x, the values and the bias.

    x is `[N, I]`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseLinear
    ) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return _multiply_forward(ctx, x, values, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        layer: SparseLinear = ctx.layer
        grad_x, grad_bias = _compute_other_gradients(ctx, grad, values, layer)
        grad_values = None
        if ctx.needs_input_grad[1]:
            grad_values = layer.choices.compute(grad, x, layer.get_pattern()).to(values.dtype)
        return grad_x, grad_values, grad_bias, None


class _BlockProduct(torch.autograd.Function):
    """The product for rows x columns: only the block's columns of x `[N, I]` are saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseLinear
    ) -> Tensor:
        x_Q = None
        if ctx.needs_input_grad[1]:
            x_Q = _select_columns(x, layer.columns)
        ctx.save_for_backward(x_Q, values)
        ctx.layer = layer
        return _multiply_forward(ctx, x, values, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_Q, values = ctx.saved_tensors
        layer: SparseLinear = ctx.layer
        grad_x, grad_bias = _compute_other_gradients(ctx, grad, values, layer)
        grad_values = None
        if ctx.needs_input_grad[1]:
            grad_P = _select_columns(grad, layer.rows)
            grad_values = (grad_P.t() @ x_Q.to(grad.dtype)).flatten().to(values.dtype)
        return grad_x, grad_values, grad_bias, None


def _select_columns(tensor: Tensor, columns: Tensor) -> Tensor:
    """Return these columns of `[N, F]`; all of them without a copy."""
    if columns.numel() == tensor.shape[1]:
        return tensor
    # Twice to four times as fast as `index_select` on a CPU.
    return tensor.gather(1, columns.expand(tensor.shape[0], -1))


def _multiply_forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    layer: SparseLinear = ctx.layer
    y = multiply(x, layer.write_entries(values), bias, conv1d=layer.conv1d)
    layer.end_product()
    ctx.write = layer.last_write
    return y


def _compute_other_gradients(
    ctx: Any, grad: Tensor, values: Tensor, layer: SparseLinear
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the bias."""
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight = layer.write_entries_again(values, ctx.write)
        grad_x = multiply_back(grad, weight, conv1d=layer.conv1d)
        layer.end_product()
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum(0)
    return grad_x, grad_bias
