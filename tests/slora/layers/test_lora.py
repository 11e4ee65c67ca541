"""The low-rank layer: LoRA's formula, LoRA's init."""

from __future__ import annotations

import pytest
import torch

from slora.errors import BadRank
from slora.layers.lora import LoraLinear, init_factors


def test_the_layer_computes_base_plus_scaled_product():
    base = torch.nn.Linear(5, 7)
    a_RI, b_OR = torch.randn(2, 5), torch.randn(7, 2)
    layer = LoraLinear(base, a_RI=a_RI, b_OR=b_OR, scale=2.0)
    x = torch.randn(3, 5)
    expected = torch.nn.functional.linear(x, base.weight + 2.0 * b_OR @ a_RI, base.bias)
    torch.testing.assert_close(layer(x), expected)


def test_a_new_layer_computes_the_base_and_a_is_random():
    base = torch.nn.Linear(50, 70)
    a_RI, b_OR = init_factors(seed=0, name="x", shape=(70, 50), rank=8)
    x = torch.randn(3, 50)
    assert torch.equal(LoraLinear(base, a_RI=a_RI, b_OR=b_OR, scale=2.0)(x), base(x))
    bound = 50**-0.5
    assert a_RI.abs().max() <= bound
    # A uniform draw has a standard deviation of bound / sqrt(3).
    assert abs(float(a_RI.std()) - bound / 3**0.5) < 0.1 * bound


def test_initial_factors_depend_only_on_seed_and_name():
    torch.manual_seed(1)
    first, _ = init_factors(seed=0, name="x", shape=(6, 4), rank=2)
    torch.manual_seed(2)
    same, _ = init_factors(seed=0, name="x", shape=(6, 4), rank=2)
    other, _ = init_factors(seed=0, name="y", shape=(6, 4), rank=2)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_rank_above_the_matrix_names_the_layer():
    with pytest.raises(BadRank, match=r"layer\.q"):
        init_factors(seed=0, name="layer.q", shape=(6, 4), rank=5)


def test_factors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        LoraLinear(torch.nn.Linear(4, 4), a_RI=torch.ones(2, 3), b_OR=torch.ones(4, 2), scale=1)
