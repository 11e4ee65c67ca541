"""The mean of low-rank updates against the dense one."""

from __future__ import annotations

import pytest
import torch

from slora.handoff.average import average_low_rank


def _pairs(count: int, *, rank: int = 3, near: float = 0.1) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(count)
    a, b = (torch.randn(*s, generator=generator) for s in ((rank, 7), (9, rank)))
    return [
        (a + near * torch.randn(a.shape, generator=generator),
         b + near * torch.randn(b.shape, generator=generator))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("near", [0.05, 3.0])
def test_the_mean_product_is_the_best_of_its_rank(count, near):
    pairs = _pairs(count, near=near)
    dense = torch.stack([b @ a for a, b in pairs]).mean(0).double()
    averaged = average_low_rank(pairs)
    tail = torch.linalg.svdvals(dense)[3:].square().sum()
    error = (dense - averaged.b_OR.double() @ averaged.a_RI.double()).square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-3, abs=1e-8)
    assert averaged.lost_energy == pytest.approx(float(tail), rel=1e-3, abs=1e-8)
    assert averaged.energy == pytest.approx(float(dense.square().sum()), rel=1e-5)


def test_the_mean_of_a_single_update_is_itself_so_that_moments_still_fit():
    ((a, b),) = _pairs(1)
    averaged = average_low_rank([(a, b)])
    assert torch.allclose(averaged.a_RI, a, atol=1e-5)
    assert torch.allclose(averaged.b_OR, b, atol=1e-4)


def test_updates_of_zero_have_a_mean_of_zero():
    a = torch.randn(3, 7)
    averaged = average_low_rank([(a, torch.zeros(9, 3)), (a + 1, torch.zeros(9, 3))])
    assert not averaged.b_OR.any()
    assert torch.allclose(averaged.a_RI, a + 0.5)


def test_a_rank_above_that_of_the_updates_stays_finite():
    a = torch.randn(3, 7)
    b = torch.zeros(9, 3)
    b[:, 0] = 1
    averaged = average_low_rank([(a, b), (a, 2 * b)])
    assert torch.isfinite(averaged.a_RI).all() and torch.isfinite(averaged.b_OR).all()
    assert torch.allclose(averaged.b_OR @ averaged.a_RI, 1.5 * b @ a, atol=1e-4)
