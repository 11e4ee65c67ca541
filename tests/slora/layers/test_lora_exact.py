"""The low-rank layers against dense float64 references: LoRA, sparse factors, gates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from slora.layers.base_layers import get_weight_matrix
from slora.layers.gates import GatedLoraLinear, count_open_gates, measure_importance, shrink_gates
from slora.layers.lora import LoraLinear, _LowRankProduct
from slora.layers.sparse_factors import (
    SparseFactorLinear,
    is_zero_outside,
    mask_factor,
    measure_energy_share,
)
from slora.masks.factor_mask import FactorMaskRule

LAYERS = ("lora", "sparse factors", "gates")


def _base(out_features, in_features, *, bias=True, conv1d=False, dtype=torch.float64):
    if conv1d:
        base = Conv1D(out_features, in_features).to(dtype)
        torch.nn.init.normal_(base.bias)
    else:
        base = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    return base.requires_grad_(False)


def _layer(kind, base, rank, *, dtype=torch.float64):
    out_features, in_features = get_weight_matrix(base).shape
    a, b = torch.randn(rank, in_features), torch.randn(out_features, rank)
    if kind == "sparse factors":
        rule = FactorMaskRule("balanced", 0.5, 0)
        layer = SparseFactorLinear(base, a_RI=a, b_OR=b, scale=0.7, rule=rule, name="x")
        for name in ("dense_a_RI", "dense_b_OR"):
            setattr(layer, name, getattr(layer, name).to(dtype))
    elif kind == "gates":
        layer = GatedLoraLinear(base, a_RI=a, b_OR=b, scale=0.7)
        layer.gate_R.data.normal_()
        layer.open_R[0] = 0
    else:
        layer = LoraLinear(base, a_RI=a, b_OR=b, scale=0.7)
    for parameter in layer.parameters(recurse=False):
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return layer


def _trained(layer):
    return {n: p for n, p in layer.named_parameters(recurse=False) if n not in ("weight", "bias")}


@settings(deadline=None, max_examples=120)
@given(
    out_features=st.integers(1, 16),
    in_features=st.integers(1, 16),
    rank=st.integers(1, 5),
    tokens=st.integers(1, 5),
    kind=st.sampled_from(LAYERS),
    bias=st.booleans(),
    conv1d=st.booleans(),
)
def test_forward_and_every_gradient_equal_the_dense_reference(
    out_features, in_features, rank, tokens, kind, bias, conv1d
):
    torch.manual_seed(out_features * 17 + in_features)
    base = _base(out_features, in_features, bias=bias, conv1d=conv1d)
    layer = _layer(kind, base, rank)
    x = torch.randn(2, tokens, in_features, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_(True)
    a_RI, b_OR = layer.get_factors()
    weight = get_weight_matrix(base) + 0.7 * b_OR @ a_RI
    expected = torch.nn.functional.linear(x2, weight, base.bias)
    grad = torch.randn_like(expected)
    parameters = _trained(layer)
    expected_grads = torch.autograd.grad(expected, [x2, *parameters.values()], grad)
    result = layer(x)
    torch.testing.assert_close(result, expected)
    result_grads = torch.autograd.grad(result, [x, *parameters.values()], grad)
    for actual, expected in zip(result_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, expected)
    assert base.weight.grad is None


@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
def test_gradcheck_of_the_low_rank_product(conv1d):
    torch.manual_seed(0)
    base = _base(6, 5, conv1d=conv1d)
    x, a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True)
               for s in ((3, 5), (2, 5), (6, 2)))  # fmt: skip
    bias = base.bias.detach().clone().requires_grad_(True)

    layer = LoraLinear(base, a_RI=a.detach(), b_OR=b.detach(), scale=0.7)

    def product(x, a, b, bias):
        return _LowRankProduct.apply(x, a, b, bias, layer)

    assert torch.autograd.gradcheck(product, (x, a, b, bias))


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("kind", LAYERS)
def test_activation_checkpointing_changes_no_gradient(kind, reentrant):
    torch.manual_seed(0)
    layer = _layer(kind, _base(6, 5), 2)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *_trained(layer).values()])
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    for tensor, gradient in zip([x, *_trained(layer).values()], expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_bfloat16_base_has_float32_gradients_near_the_exact_ones(kind):
    torch.manual_seed(0)
    base = _base(48, 32, dtype=torch.bfloat16)
    layer = _layer(kind, base, 4, dtype=torch.float32)
    x = torch.randn(64, 32).bfloat16()
    layer(x).float().square().sum().backward()
    a_RI, b_OR = layer.get_factors()
    weight = base.weight.float() + 0.7 * b_OR @ a_RI
    expected = torch.nn.functional.linear(x.float(), weight, base.bias.float()).square().sum()
    parameters = list(_trained(layer).values())
    for parameter, exact in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - exact).norm() / exact.norm()) < 0.02


def test_only_the_input_is_saved_at_the_layers_width():
    layer = _layer("lora", _base(40, 30, dtype=torch.float32), 4, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, id):
        layer(torch.randn(100, 30))
    assert sorted(saved) == sorted([(100, 30), (100, 4), (4, 30), (40, 4)])


def _train_sparse_factors(a_RI, b_OR, rule, *, steps=3, micro_batches=2):
    """Train with gradients summed over micro-batches, and return the layer's factors."""
    layer = SparseFactorLinear(
        _base(12, 10, dtype=torch.float32), a_RI=a_RI, b_OR=b_OR, scale=0.7, rule=rule, name="x"
    )
    optimizer = torch.optim.AdamW([layer.a_values, layer.b_values], lr=0.1, weight_decay=0.0)
    for step in range(steps):
        # Two forwards of one layer before their backward, as in a model that uses it twice.
        losses = []
        for micro in range(micro_batches):
            x = torch.randn(6, 10, generator=torch.Generator().manual_seed(step * 9 + micro))
            losses.append(layer(layer(x)[:, :10]).square().sum())
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, tuple(factor.detach() for factor in layer.get_factors())


@pytest.mark.parametrize("kind", ["balanced", "random", "lines"])
def test_only_the_masks_entries_are_trained_and_the_others_keep_their_bits(kind):
    torch.manual_seed(0)
    starts = torch.randn(4, 10), torch.randn(12, 4)
    rule = FactorMaskRule(kind, 0.25, 3)
    layer, factors = _train_sparse_factors(*starts, rule)
    for start, factor, positions in zip(starts, factors, rule.draw("x", (12, 10), 4), strict=True):
        is_trained = torch.zeros(start.numel(), dtype=torch.bool)
        is_trained[positions] = True
        changed = (factor != start).flatten()
        assert torch.equal(changed, is_trained)
    filled = layer.fill_factors(layer.a_values.detach(), layer.b_values.detach())
    assert all(map(torch.equal, filled, factors))


def test_a_frozen_factor_gets_no_gradient_and_the_other_one_its_own():
    layer = _layer("sparse factors", _base(6, 5), 2)
    x = torch.randn(3, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    expected = layer.b_values.grad.clone()
    layer.zero_grad()
    layer.a_values.requires_grad_(False)
    assert not layer.get_factors()[0].requires_grad
    layer(x).square().sum().backward()
    assert layer.a_values.grad is None
    torch.testing.assert_close(layer.b_values.grad, expected)


def test_masks_of_everything_train_as_lora_does():
    torch.manual_seed(0)
    starts = torch.randn(4, 10), torch.randn(12, 4)
    torch.manual_seed(1)
    _, (a_RI, b_OR) = _train_sparse_factors(*starts, FactorMaskRule("random", 1.0, 0))
    torch.manual_seed(1)
    lora = LoraLinear(_base(12, 10, dtype=torch.float32), a_RI=starts[0], b_OR=starts[1], scale=0.7)
    optimizer = torch.optim.AdamW([lora.a_RI, lora.b_OR], lr=0.1, weight_decay=0.0)
    for step in range(3):
        for micro in range(2):
            x = torch.randn(6, 10, generator=torch.Generator().manual_seed(step * 9 + micro))
            lora(lora(x)[:, :10]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close((a_RI, b_OR), (lora.a_RI.detach(), lora.b_OR.detach()))


def test_a_mask_of_a_factor_can_be_applied_checked_and_weighed():
    factor, positions = torch.tensor([[3.0, 1.0], [0.0, 4.0]]), torch.tensor([0, 2])
    masked = mask_factor(factor, positions)
    assert masked.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert is_zero_outside(masked, positions) and not is_zero_outside(factor, positions)
    assert measure_energy_share(factor, positions) == pytest.approx(9 / 26)
    assert measure_energy_share(torch.zeros(2, 2), positions) == 1.0


def test_open_gates_decrease_from_the_rank_to_the_density_and_stay():
    counts = [count_open_gates(step, steps=60, rank=16, density=0.25) for step in range(61)]
    assert counts[0] == 16 and counts[40:] == [4] * 21
    assert counts == sorted(counts, reverse=True)
    assert count_open_gates(5, steps=10, rank=4, density=0.01) >= 1


@settings(deadline=None, max_examples=60)
@given(rank=st.integers(1, 12), keep=st.integers(1, 12), pruned=st.integers(0, 4))
def test_shrinking_leaves_the_most_important_gates_and_opens_none(rank, keep, pruned):
    torch.manual_seed(rank * 13 + keep)
    gate = torch.randn(rank)
    gate[: min(pruned, rank - 1)] = 0
    weight = measure_importance(gate, torch.randn(rank, 7), torch.randn(9, rank))
    result = shrink_gates(gate, weight, keep=keep)
    still = result != 0
    assert int(still.sum()) <= keep
    assert not still[gate == 0].any()
    assert (result.abs() <= gate.abs()).all() and (result * gate >= 0).all()
    if still.any() and (~still).any():
        assert weight[still].min() >= weight[~still].max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_reads_the_values_that_are_there_now(dtype):
    layer = _layer("sparse factors", _base(6, 5, dtype=dtype), 4, dtype=torch.float32)
    x = torch.randn(3, 5, dtype=dtype)
    first = layer(x)
    for values in (layer.a_values, layer.b_values):
        values.data.neg_()
        second = layer(x)
        assert not torch.equal(first, second)
        first = second
    fresh = LoraLinear(
        layer.wrapped[0],
        **dict(zip(("a_RI", "b_OR"), (f.detach() for f in layer.get_factors()), strict=True)),
        scale=layer.scale,
    )
    torch.testing.assert_close(first, fresh(x), rtol=0, atol=0)
