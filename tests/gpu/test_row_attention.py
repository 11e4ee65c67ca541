"""Attention by row on CUDA: torch's kernel for rows of any length, and groups of rows beside it."""

from __future__ import annotations

import pytest
import torch

from jobs.train.attention.row_attention import attend_by_row, has_kernel_for_rows
from jobs.train.attention.row_layout import make_layout
from tests.jobs.train.test_row_attention import SHAPES, STARTS, attend_with_mask, draw_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_on_cuda_are_those_of_a_mask(name: str, dtype: torch.dtype):
    tensors = draw_tensors(name)
    expected = attend_with_mask(*tensors, None)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, tensors, upstream)
    on_device = [t.detach().to("cuda", dtype).requires_grad_() for t in tensors]
    layout = make_layout(STARTS, sequences=2, length=40, device="cuda")
    output, _ = attend_by_row(None, *on_device, layout)
    gradients = torch.autograd.grad(output, on_device, upstream.to("cuda", dtype))
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    assert (output.float().cpu() - expected).abs().max() < bound * expected.abs().max()
    for actual, gradient in zip(gradients, wanted, strict=True):
        assert (actual.float().cpu() - gradient).abs().max() < bound * gradient.abs().max()


def test_half_precision_takes_the_kernel_for_rows():
    query = torch.zeros(1, 2, 8, 16, dtype=torch.bfloat16, device="cuda")
    is_new = torch.cuda.get_device_capability() >= (8, 0)
    assert has_kernel_for_rows(query, query, 0.0) == is_new
    assert not has_kernel_for_rows(query.float(), query.float(), 0.0)
    assert not has_kernel_for_rows(query, query, 0.1)
