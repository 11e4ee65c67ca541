"""The Triton kernel, on a GPU or in Triton's interpreter, agrees with the dense product."""

from __future__ import annotations

import pytest
import torch

from slora.kernels.entry_kernel import multiply_by_entries
from slora.kernels.pattern import EntryPattern, compress_rows
from slora.masks.mask import draw_random_mask

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _operands(tokens, shape, density, dtype):
    torch.manual_seed(0)
    mask = draw_random_mask(seed=1, name="x", shape=shape, density=density)
    pattern = compress_rows(mask)
    on_device = EntryPattern(
        pattern.row_starts.to(DEVICE), pattern.columns.to(DEVICE), pattern.positions.to(DEVICE),
        shape,
    )  # fmt: skip
    grad, x = (torch.randn(tokens, side).to(DEVICE, dtype) for side in shape)
    return grad, x, on_device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "shape", "density"), [(1, (1, 1), 1.0), (64, (40, 30), 0.1), (130, (9, 50), 0.4)]
)
def test_it_computes_the_dense_product_at_the_entries(tokens, shape, density, dtype):
    grad, x, pattern = _operands(tokens, shape, density, dtype)
    expected = (grad.double().t() @ x.double()).view(-1)[pattern.positions]
    result = multiply_by_entries(grad, x, pattern)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_operands_may_be_views_of_any_layout():
    grad, x, pattern = _operands(20, (8, 6), 0.5, torch.float32)
    expected = multiply_by_entries(grad, x, pattern)
    views = grad.t().contiguous().t(), torch.cat((x, x), dim=1)[:, 6:]
    torch.testing.assert_close(multiply_by_entries(*views, pattern), expected)
