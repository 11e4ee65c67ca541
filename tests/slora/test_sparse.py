"""The sparse layer against a dense float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.adapt import freeze, install_sparse, remove
from slora.mask import random_mask
from slora.sparse import SparseLinear, _SparseProduct, dense_delta


def _layer(out_features=7, in_features=5, *, density=0.3, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    base = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    base.requires_grad_(False)
    mask = random_mask(seed=1, name="x", shape=(out_features, in_features), density=density)
    layer = SparseLinear(base, mask)
    layer.values.data = torch.randn(mask.nnz, dtype=dtype)
    return base, mask, layer


@settings(deadline=None, max_examples=40)
@given(
    out_features=st.integers(1, 20),
    in_features=st.integers(1, 20),
    tokens=st.integers(1, 6),
    density=st.floats(0.01, 1.0),
    bias=st.booleans(),
)
def test_forward_and_every_gradient_equal_the_dense_reference(
    out_features, in_features, tokens, density, bias
):
    base, mask, layer = _layer(out_features, in_features, density=density, bias=bias)
    base.requires_grad_(True)
    x = torch.randn(2, tokens, in_features, dtype=torch.float64, requires_grad=True)
    dense = torch.zeros(out_features * in_features, dtype=torch.float64)
    dense[mask.positions] = layer.values.detach()
    dense = dense.view(out_features, in_features).requires_grad_(True)
    x2 = x.detach().clone().requires_grad_(True)
    bias2 = base.bias.detach().clone().requires_grad_(True) if bias else None
    wanted = torch.nn.functional.linear(x2, base.weight.detach() + dense, bias2)
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    layer(x).backward(grad)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.values.grad, dense.grad.view(-1)[mask.positions])
    if bias2 is not None:
        torch.testing.assert_close(base.bias.grad, bias2.grad)


def test_gradcheck_of_the_sparse_product():
    base, _, layer = _layer()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    values = layer.values.detach().clone().requires_grad_(True)

    def product(x, values):
        indices = (layer.positions, layer.row_starts, layer.columns)
        return _SparseProduct.apply(x, values, base.weight, base.bias, *indices)

    assert torch.autograd.gradcheck(product, (x, values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_base_keeps_its_bits_through_forward_backward_and_an_error(dtype):
    base, _, layer = _layer(dtype=dtype)
    before = base.weight.detach().clone()
    layer(torch.randn(3, 5, dtype=dtype)).sum().backward()
    assert torch.equal(base.weight, before)
    with pytest.raises(RuntimeError, match="shape"):
        layer(torch.randn(3, 4, dtype=dtype))
    assert torch.equal(base.weight, before)


def test_a_bfloat16_base_computes_with_the_rounded_sum():
    base, mask, layer = _layer(dtype=torch.bfloat16)
    layer.values.data = torch.randn(mask.nnz)
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    summed = (base.weight.float() + dense_delta(layer.values, mask)).bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, summed, base.bias))
    assert layer.values.grad is None or layer.values.grad.dtype == torch.float32


def test_nothing_dense_is_ever_a_gradient():
    base, mask, layer = _layer(64, 64, density=0.01, dtype=torch.float32)
    layer(torch.randn(8, 64)).sum().backward()
    assert base.weight.grad is None
    assert layer.values.grad.shape == (mask.nnz,)


def test_installing_and_removing_leaves_the_very_same_layers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    freeze(model, trained=[model[2]])
    first = model[0]
    masks = {"0": random_mask(seed=0, name="0", shape=(4, 4), density=0.5)}
    installed = install_sparse(model, masks)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"0.values", "2.weight", "2.bias"}
    assert installed["0"].weight is first.weight
    remove(model)
    assert model[0] is first


def test_only_linear_layers_can_be_adapted():
    model = torch.nn.Sequential(torch.nn.Embedding(4, 4))
    with pytest.raises(TypeError, match="Embedding"):
        install_sparse(model, {"0": random_mask(seed=0, name="0", shape=(4, 4), density=0.5)})


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        SparseLinear(torch.nn.Linear(4, 4), random_mask(seed=0, name="x", shape=(4, 3), density=1))
