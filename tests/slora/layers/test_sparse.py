"""The sparse layer against a dense float64 reference, for every form of mask and kind of layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from slora.layers.base_layers import get_weight_matrix
from slora.layers.install import freeze, install_sparse, remove_layers
from slora.layers.sparse import (
    SparseLinear,
    _BlockProduct,
    _EntriesProduct,
    make_dense_delta,
)
from slora.masks.mask import BlockMask, Mask, draw_random_mask

FORMS = ("entries", "rows", "columns", "block")


def _mask(form: str, shape: tuple[int, int], density: float) -> Mask:
    if form == "entries":
        return draw_random_mask(seed=1, name="x", shape=shape, density=density)
    sides = [max(1, round(side * density)) for side in shape]
    chosen = [torch.randperm(s)[:n].sort().values for s, n in zip(shape, sides, strict=True)]
    all_indices = [torch.arange(side) for side in shape]
    rows = all_indices[0] if form == "columns" else chosen[0]
    return BlockMask(shape, rows, all_indices[1] if form == "rows" else chosen[1])


def _base(out_features, in_features, *, bias=True, conv1d=False, dtype=torch.float64):
    if conv1d:
        base = Conv1D(out_features, in_features).to(dtype)
        torch.nn.init.normal_(base.bias)
    else:
        base = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    return base.requires_grad_(False)


def _layer(
    out_features=7, in_features=5, *, density=0.3, form="entries", dtype=torch.float64, **more
):
    torch.manual_seed(0)
    base = _base(out_features, in_features, dtype=dtype, **more)
    mask = _mask(form, (out_features, in_features), density)
    layer = SparseLinear(base, mask)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layer.values.data = torch.randn(mask.nnz, dtype=wide)
    return base, mask, layer


@settings(deadline=None, max_examples=120)
@given(
    out_features=st.integers(1, 20),
    in_features=st.integers(1, 20),
    tokens=st.integers(1, 6),
    density=st.floats(0.01, 1.0),
    form=st.sampled_from(FORMS),
    bias=st.booleans(),
    conv1d=st.booleans(),
)
def test_forward_and_every_gradient_equal_the_dense_reference(
    out_features, in_features, tokens, density, form, bias, conv1d
):
    base, mask, layer = _layer(
        out_features, in_features, density=density, form=form, bias=bias, conv1d=conv1d
    )
    base.requires_grad_(True)
    x = torch.randn(2, tokens, in_features, dtype=torch.float64, requires_grad=True)
    dense = torch.zeros(out_features * in_features, dtype=torch.float64)
    dense[mask.positions] = layer.values.detach()
    dense = dense.view(out_features, in_features).requires_grad_(True)
    x2 = x.detach().clone().requires_grad_(True)
    bias2 = base.bias.detach().clone().requires_grad_(True) if base.bias is not None else None
    weight = get_weight_matrix(base).detach().clone()
    expected = torch.nn.functional.linear(x2, weight + dense, bias2)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    layer(x).backward(grad)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.values.grad, dense.grad.view(-1)[mask.positions])
    if bias2 is not None:
        torch.testing.assert_close(base.bias.grad, bias2.grad)


@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_both_products(form, conv1d):
    base, _, layer = _layer(form=form, conv1d=conv1d)
    function = _EntriesProduct if form == "entries" else _BlockProduct
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    values = layer.values.detach().clone().requires_grad_(True)
    bias = base.bias.detach().clone().requires_grad_(True)

    def product(x, values, bias):
        return function.apply(x, values, bias, layer)

    assert torch.autograd.gradcheck(product, (x, values, bias))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_base_has_its_bits_again_when_the_layers_are_removed(dtype, form):
    base, mask, _ = _layer(dtype=dtype, form=form)
    model = torch.nn.Sequential(base)
    before = base.weight.detach().clone()
    layer = install_sparse(model, {"0": mask})["0"]
    for _ in range(3):
        layer.values.data.normal_()
        model(torch.randn(3, 5, dtype=dtype)).sum().backward()
    with pytest.raises(RuntimeError, match="shape"):
        layer(torch.randn(3, 4, dtype=dtype))
    assert not torch.equal(base.weight, before)
    remove_layers(model)
    assert torch.equal(base.weight, before)


def test_layers_that_never_ran_are_removed_without_a_trace():
    base, mask, _ = _layer()
    model, before = torch.nn.Sequential(base), base.weight.detach().clone()
    install_sparse(model, {"0": mask})
    remove_layers(model)
    assert torch.equal(base.weight, before)


@pytest.mark.parametrize("form", FORMS)
def test_a_backward_computes_with_the_values_of_its_own_forward(form):
    _, _, layer = _layer(form=form)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    expected, x.grad = x.grad.clone(), None
    output = layer(x).sum()
    own_values = layer.values.detach().clone()
    layer.values = torch.nn.Parameter(own_values + 1)
    layer(x.detach())
    output.backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("between", ["nothing", "another forward", "removal", "a gather"])
def test_a_backward_writes_the_sums_again_only_where_its_forward_s_may_be_gone(between):
    _, mask, layer = _layer()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    adapted = layer.weight + make_dense_delta(layer.values, mask).double()
    gathered = layer.weight.clone()
    y = layer(x)
    if between == "another forward":
        layer.values = torch.nn.Parameter(layer.values.detach() + 1)
        layer(x)
    elif between == "removal":
        layer.restore_entries()
    elif between == "a gather":
        layer.weight.data, layer.weight.ds_tensor = gathered, torch.empty(0)
    write = layer.last_write
    y.sum().backward()
    assert (layer.last_write is write) == (between == "nothing")
    torch.testing.assert_close(x.grad, adapted.sum(0).expand(4, 5), rtol=1e-6, atol=1e-6)


def test_a_module_that_shares_the_weight_never_sees_the_values():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(6, 5)
            self.head = torch.nn.Linear(5, 6, bias=False)
            self.head.weight = self.embed.weight

    model = Tied().requires_grad_(False)
    ids, before = torch.arange(6), model.embed.weight.clone()
    layer = install_sparse(model, {"head": _mask("entries", (6, 5), 0.5)})["head"]
    layer.values.data.fill_(1.0)
    layer(model.embed(ids).requires_grad_()).sum().backward()
    assert torch.equal(model.embed(ids), before)


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_base_computes_with_the_rounded_sum(form):
    base, mask, layer = _layer(dtype=torch.bfloat16, form=form)
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    summed = (base.weight.float() + make_dense_delta(layer.values, mask)).bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, summed, base.bias))
    layer(x).sum().backward()
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("form", FORMS)
def test_activation_checkpointing_changes_no_gradient(form, reentrant):
    _, _, layer = _layer(form=form)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    expected = layer.values.grad.clone(), x.grad.clone()
    layer.values.grad = x.grad = None
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(layer.values.grad, expected[0])
    assert torch.equal(x.grad, expected[1])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_dense_is_ever_a_gradient(form):
    base, mask, layer = _layer(64, 64, density=0.1, form=form, dtype=torch.float32)
    layer(torch.randn(8, 64)).sum().backward()
    assert base.weight.grad is None
    assert layer.values.grad.shape == (mask.nnz,)


def test_a_block_keeps_only_its_own_columns_of_the_input():
    _, mask, layer = _layer(64, 64, density=0.1, form="block", dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, id):
        layer(torch.randn(1000, 64))
    assert 1000 * mask.columns.numel() in saved
    assert 1000 * 64 not in saved


def test_installing_and_removing_leaves_the_very_same_layers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    freeze(model, trainable=[model[2]])
    first = model[0]
    masks = {"0": draw_random_mask(seed=0, name="0", shape=(4, 4), density=0.5)}
    installed = install_sparse(model, masks)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"0.values", "2.weight", "2.bias"}
    assert installed["0"].weight is first.weight
    remove_layers(model)
    assert model[0] is first


def test_only_linear_layers_can_be_adapted():
    model = torch.nn.Sequential(torch.nn.Embedding(4, 4))
    with pytest.raises(TypeError, match="Embedding"):
        install_sparse(model, {"0": draw_random_mask(seed=0, name="0", shape=(4, 4), density=0.5)})


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        SparseLinear(
            torch.nn.Linear(4, 4), draw_random_mask(seed=0, name="x", shape=(4, 3), density=1)
        )


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_passed_through_three_times_as_in_albert_gets_the_sum_of_the_passes(form):
    base, mask, layer = _layer(6, 6, form=form)
    x = torch.randn(2, 6, dtype=torch.float64)
    dense = make_dense_delta(layer.values, mask).double().requires_grad_(True)
    weight = base.weight.detach().clone()
    layer(layer(layer(x).tanh()).tanh()).sum().backward()
    output = x
    for last in (False, False, True):
        output = torch.nn.functional.linear(output, weight + dense, base.bias)
        output = output if last else output.tanh()
    output.sum().backward()
    expected = dense.grad.view(-1)[mask.positions]
    torch.testing.assert_close(layer.values.grad, expected, rtol=1e-5, atol=1e-6)
