"""The kernels of the masked product agree with the dense product, for every shape and dtype."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.kernels import torch_kernels
from slora.kernels.choice import list_kernels
from slora.kernels.pattern import compress_rows
from slora.kernels.tile_kernel import compile_function
from slora.masks.mask import draw_random_mask

CPU_KERNELS = list_kernels("cpu", torch.float32)


def _operands(tokens, shape, density, dtype=torch.float32):
    torch.manual_seed(0)
    mask = draw_random_mask(seed=1, name="x", shape=shape, density=density)
    grad, x = torch.randn(tokens, shape[0]).to(dtype), torch.randn(tokens, shape[1]).to(dtype)
    return grad, x, compress_rows(mask)


def _multiply_densely(grad, x, pattern):
    return (grad.double().t() @ x.double()).view(-1)[pattern.positions]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 200),
    density=st.floats(0.01, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kernel=st.sampled_from(sorted(CPU_KERNELS)),
)
def test_every_kernel_computes_the_dense_product_at_the_entries(
    rows, columns, tokens, density, dtype, kernel
):
    grad, x, pattern = _operands(tokens, (rows, columns), density, dtype)
    result = CPU_KERNELS[kernel](grad, x, pattern)
    is_rounded = kernel == "slabs" and dtype == torch.bfloat16
    bound = 0.02 if is_rounded else 1e-5
    expected = _multiply_densely(grad, x, pattern)
    torch.testing.assert_close(result.double(), expected, rtol=bound, atol=bound * tokens**0.5)


@pytest.mark.parametrize("kernel", sorted(CPU_KERNELS))
def test_operands_may_be_views_of_any_layout(kernel):
    grad, x, pattern = _operands(70, (12, 9), 0.3)
    expected = _multiply_densely(grad, x, pattern)
    views = grad.t().contiguous().t(), torch.cat((x, x), dim=1)[:, :9]
    result = CPU_KERNELS[kernel](*views, pattern)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    ones = torch.ones(()).expand(70, 12)
    sums = _multiply_densely(ones, x, pattern)
    result = CPU_KERNELS[kernel](ones, x, pattern)
    torch.testing.assert_close(result.double(), sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", sorted(CPU_KERNELS))
def test_a_value_that_is_not_finite_reaches_the_entries_of_its_column(kernel):
    grad, x, pattern = _operands(65, (8, 6), 1.0)
    x[64, 2] = float("nan")
    result = CPU_KERNELS[kernel](grad, x, pattern).view(8, 6)
    assert result[:, 2].isnan().all()
    assert result[:, :2].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_come_out_of_each_call(threads):
    grad, x, pattern = _operands(300, (64, 48), 0.05)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (CPU_KERNELS["tiles"](grad, x, pattern) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, second)


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_keeps_its_number_of_threads(threads):
    """In a process of its own: numba's threads start once."""
    code = (
        "import torch; torch.set_num_threads({threads}); "
        "from tests.slora.kernels.test_kernels import CPU_KERNELS, _operands; "
        "CPU_KERNELS['tiles'](*_operands(70, (8, 6), 0.5)); print(torch.get_num_threads())"
    )
    command = [sys.executable, "-c", code.format(threads=threads)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(output) == threads


def test_a_large_product_is_computed_in_slabs_that_hold_all_entries(monkeypatch):
    monkeypatch.setattr(torch_kernels, "SLAB_BYTES", 9 * 4 * 5)
    grad, x, pattern = _operands(7, (23, 9), 0.3)
    result = torch_kernels.multiply_by_slabs(grad, x, pattern)
    expected = _multiply_densely(grad, x, pattern)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_function_that_can_not_be_cached_on_disk_is_compiled_all_the_same():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)
    assert compile_function(namespace["double"])(3) == 6
