"""The hand-off: the best approximation of its rank, and exact figures for the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.errors import BadRank
from slora.handoff.handoff import Handoff, compute_on_mask, split_sparse_update
from slora.layers.sparse import make_dense_delta
from slora.masks.mask import BlockMask, EntryMask, draw_random_mask
from slora.masks.sizes import compute_block_sides, compute_exact_rank


def split_full_update(delta: torch.Tensor, *, rank: int, **options) -> Handoff:
    """Split an update whose mask has every entry."""
    mask = EntryMask((delta.shape[0], delta.shape[1]), torch.arange(delta.numel()))
    return split_sparse_update(delta.flatten(), mask, rank=rank, **{"scale": 1.0, **options})


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    rank=st.integers(1, 24),
    split=st.sampled_from(["balanced", "b"]),
    scale=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_factors_are_the_best_of_their_rank(rows, columns, rank, split, scale):
    rank = min(rank, rows, columns)
    torch.manual_seed(rows * 100 + columns)
    delta = torch.randn(rows, columns)
    result = split_full_update(delta, rank=rank, scale=scale, split=split)
    assert result.a_RI.shape == (rank, columns)
    assert result.b_OR.shape == (rows, rank)
    rest = (delta - scale * result.b_OR @ result.a_RI).double().norm()
    tail = torch.linalg.svdvals(delta.double())[rank:].square().sum().sqrt()
    # Eckart and Young: no matrix of this rank is nearer than the tail of the singular values.
    torch.testing.assert_close(rest, tail, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        result.energy_share,
        float(1 - tail**2 / delta.double().square().sum()),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(
        result.error, float(tail / delta.double().norm()), rtol=1e-2, atol=2e-3
    )


def test_a_balanced_split_gives_both_factors_the_same_norm():
    result = split_full_update(torch.randn(16, 12), rank=4)
    torch.testing.assert_close(result.a_RI.norm(dim=1), result.b_OR.norm(dim=0))


def test_split_b_leaves_a_with_orthonormal_rows():
    result = split_full_update(torch.randn(16, 12), rank=4, split="b")
    torch.testing.assert_close(result.a_RI @ result.a_RI.t(), torch.eye(4), atol=1e-5, rtol=0)


def test_an_update_of_zero_loses_nothing_and_gives_zero_factors():
    result = split_full_update(torch.zeros(6, 4), rank=2)
    assert result.energy_share == 1.0
    assert result.error == 0.0
    assert not (result.b_OR @ result.a_RI).any()


def test_an_update_of_low_rank_is_retained_exactly():
    delta = torch.randn(20, 3) @ torch.randn(3, 15)
    result = split_full_update(delta, rank=3)
    assert result.energy_share > 1 - 1e-6
    torch.testing.assert_close(result.b_OR @ result.a_RI, delta, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_above_the_matrix_is_refused_with_the_valid_range(rank):
    with pytest.raises(BadRank, match=r"use 1 to 4"):
        split_full_update(torch.randn(6, 4), rank=rank)


STRUCTURES = ("rows", "columns", "blocks")


def _structured(structure, shape, density, rank):
    sides = compute_block_sides(structure, shape, density=density, rank=rank)
    rows, columns = (
        torch.randperm(side)[:count].sort().values for side, count in zip(shape, sides, strict=True)
    )
    return BlockMask(shape, rows, columns)


FLOAT32_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""What is left of a float32 update after its factors are rounded to float32."""


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(2, 90),
    columns=st.integers(2, 90),
    rank=st.integers(1, 12),
    density=st.floats(0.001, 1.0),
    structure=st.sampled_from(STRUCTURES),
    split=st.sampled_from(["balanced", "b"]),
)
def test_masks_sized_by_the_rank_hand_off_exactly(rows, columns, rank, density, structure, split):
    rank = min(rank, rows, columns)
    torch.manual_seed(rows * 1000 + columns)
    mask = _structured(structure, (rows, columns), density, rank)
    values = torch.randn(mask.nnz)
    result = split_sparse_update(values, mask, rank=rank, scale=2.0, split=split)
    delta = make_dense_delta(values, mask).double()
    rest = (delta - 2.0 * result.b_OR.double() @ result.a_RI.double()).norm() / delta.norm()
    assert rest <= FLOAT32_ROUNDING
    assert result.error <= FLOAT32_ROUNDING
    assert result.energy_share == pytest.approx(1.0, abs=1e-6)
    assert result.effective_rank <= compute_exact_rank(
        structure, (rows, columns), density=density, rank=rank
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    side=st.sampled_from([30, 500]),
    wide=st.sampled_from([40, 620]),
    rank=st.integers(1, 12),
    rescale=st.sampled_from(["none", "norm", "projection"]),
    residual=st.sampled_from(["drop", "keep", "fold"]),
)
def test_the_reported_error_and_residual_of_a_hand_off_are_exact(
    side, wide, rank, rescale, residual
):
    mask = draw_random_mask(seed=0, name="x", shape=(side, wide), density=0.03)
    torch.manual_seed(rank)
    values = torch.randn(mask.nnz)
    result = split_sparse_update(
        values, mask, rank=rank, scale=0.5, rescale=rescale, residual=residual
    )
    delta = make_dense_delta(values, mask).double()
    product = 0.5 * result.b_OR.double() @ result.a_RI.double()
    assert float((delta - product).norm() / delta.norm()) == pytest.approx(result.error, rel=1e-4)
    assert result.norm == pytest.approx(float(delta.norm()), rel=1e-6)
    tail = torch.linalg.svdvals(delta)
    retained = float(tail[:rank].square().sum() / tail.square().sum())
    assert result.energy_share == pytest.approx(retained, rel=1e-5)
    if rescale == "norm":
        assert float(product.norm()) == pytest.approx(result.norm, rel=1e-4)
    if residual == "drop":
        assert result.residual is None
        return
    start = product if residual == "fold" else torch.zeros_like(product)
    after = make_dense_delta(result.residual, mask).double() - start + product
    if residual == "fold":
        torch.testing.assert_close(after, delta, atol=1e-6, rtol=1e-5)
    else:
        where = mask.positions
        torch.testing.assert_close(
            after.flatten()[where], delta.flatten()[where], atol=1e-5, rtol=1e-4
        )


def test_the_projection_is_nearer_on_the_mask_than_any_other_stretch():
    mask = draw_random_mask(seed=0, name="x", shape=(60, 40), density=0.1)
    values = torch.randn(mask.nnz)
    result = split_sparse_update(values, mask, rank=4, scale=1.0, rescale="projection")
    on_mask = compute_on_mask(result.a_RI, result.b_OR, mask)
    best = (values - on_mask).norm()
    for stretch in (0.9, 0.99, 1.01, 1.1):
        assert (values - stretch * on_mask).norm() > best


def test_values_of_zero_hand_off_to_zero_factors_with_any_options():
    mask = draw_random_mask(seed=0, name="x", shape=(600, 500), density=0.01)
    for rescale in ("none", "norm", "projection"):
        result = split_sparse_update(
            torch.zeros(mask.nnz), mask, rank=4, scale=1.0, rescale=rescale
        )
        assert (result.energy_share, result.error, result.effective_rank) == (1.0, 0.0, 0)
        assert not result.b_OR.any() and torch.isfinite(result.a_RI).all()


def test_refined_factors_are_measured_after_the_refinement():
    mask = draw_random_mask(seed=0, name="x", shape=(60, 40), density=0.1)
    values = torch.randn(mask.nnz)

    def refine(a_RI, b_OR, effective):
        return a_RI * (a_RI > 0), b_OR * (b_OR > 0)

    result = split_sparse_update(values, mask, rank=4, scale=2.0, residual="keep", refine=refine)
    product = 2.0 * result.b_OR.double() @ result.a_RI.double()
    delta = make_dense_delta(values, mask).double()
    error = float((delta - product).norm() / delta.norm())
    assert result.error == pytest.approx(error, rel=1e-6)
    assert result.energy_share == pytest.approx(max(0.0, 1 - error**2), abs=1e-6)
    where = mask.positions
    after = (make_dense_delta(result.residual, mask).double() + product).flatten()[where]
    torch.testing.assert_close(after, delta.flatten()[where], rtol=1e-4, atol=1e-5)
