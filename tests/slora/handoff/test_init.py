"""PiSSA and LoRA-GA: the initial factors, and the change of the frozen weight."""

from __future__ import annotations

import pytest
import torch

from slora.errors import BadRank
from slora.handoff.init import GAMMA, init_lora_ga, init_pissa
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.install import install_low_rank, remove_layers
from slora.layers.sparse import make_dense_delta
from slora.masks.mask import draw_random_mask


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (500, 420)])
def test_pissa_is_the_best_part_of_the_weight_at_its_rank(shape):
    weight = torch.randn(shape)
    start = init_pissa(weight, rank=4, scale=2.0)
    rest = (weight - 2.0 * start.b_OR @ start.a_RI).double().norm()
    tail = torch.linalg.svdvals(weight.double())[4:].norm()
    torch.testing.assert_close(rest, tail, rtol=1e-5, atol=1e-5)
    assert start.subtract_from_base


def test_lora_ga_uses_the_first_right_and_the_next_left_vectors_of_the_gradient():
    gradient = torch.randn(30, 20)
    start = init_lora_ga(gradient, rank=3, scale=2.0)
    u, _, vh = torch.linalg.svd(gradient)
    size = 30**0.25 / (GAMMA * 2.0) ** 0.5
    torch.testing.assert_close(start.a_RI.abs(), (size * vh[:3]).abs(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(start.b_OR.abs(), (size * u[:, 3:6]).abs(), rtol=1e-3, atol=1e-4)
    assert start.subtract_from_base


def test_the_first_step_of_lora_ga_is_the_best_of_twice_the_rank():
    gradient = torch.randn(30, 20).double()
    start = init_lora_ga(gradient, rank=3, scale=1.0)
    a, b = start.a_RI.double(), start.b_OR.double()
    # A step of gradient descent on both factors moves the product by -(B B^T G + G A^T A).
    moved = b @ b.t() @ gradient + gradient @ a.t() @ a
    size = (30**0.25 / GAMMA**0.5) ** 2
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    expected = size * (u[:, :6] * s[:6]) @ vh[:6]
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


def test_a_layer_without_a_gradient_stays_unchanged():
    start = init_lora_ga(torch.zeros(8, 8), rank=2, scale=1.0)
    assert not start.a_RI.any() and not start.b_OR.any()


def test_a_rank_above_half_the_smaller_side_is_refused():
    with pytest.raises(BadRank, match="twice the rank"):
        init_lora_ga(torch.randn(8, 6), rank=4, scale=1.0)


@pytest.mark.parametrize(
    "with_residual", [False, True], ids=["subtracted", "subtracted with a residual"]
)
def test_a_subtracted_init_leaves_the_function_unchanged(with_residual):
    model = torch.nn.Sequential(torch.nn.Linear(12, 9))
    x = torch.randn(4, 12)
    mask = draw_random_mask(seed=0, name="0", shape=(9, 12), density=0.2)
    values = torch.randn(mask.nnz) if with_residual else None
    weight = model[0].weight.detach() + (make_dense_delta(values, mask) if with_residual else 0)
    expected = torch.nn.functional.linear(x, weight, model[0].bias)
    start = LowRankInit(
        torch.randn(3, 12), torch.randn(9, 3), subtract_from_base=True, residual=values
    )
    install_low_rank(model, {"0": start}, scale=0.5, masks={"0": mask})
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_residual_is_removed_bit_for_bit(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(12, 9, dtype=dtype))
    before = model[0].weight.detach().clone()
    mask = draw_random_mask(seed=0, name="0", shape=(9, 12), density=0.2)
    start = LowRankInit(torch.randn(3, 12), torch.zeros(9, 3), residual=torch.randn(mask.nnz))
    install_low_rank(model, {"0": start}, scale=0.5, masks={"0": mask})
    assert not torch.equal(model[0].weight, before)
    remove_layers(model)
    assert torch.equal(model[0].weight, before)
