"""The hand-off: the best approximation of its rank, and honest figures about what is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.errors import BadRank
from slora.handoff.handoff import compute_on_mask, split_dense_update, split_sparse_update
from slora.layers.sparse import make_dense_delta
from slora.layers.sparse_factors import apply_factor_masks
from slora.masks.mask import BlockMask, draw_random_mask
from slora.masks.sizes import compute_block_sides, compute_exact_rank


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    rank=st.integers(1, 24),
    split=st.sampled_from(["balanced", "b"]),
    scale=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_factors_are_the_best_there_is_at_their_rank(rows, columns, rank, split, scale):
    rank = min(rank, rows, columns)
    torch.manual_seed(rows * 100 + columns)
    delta = torch.randn(rows, columns)
    found = split_dense_update(delta, rank=rank, scale=scale, split=split)
    assert found.a_RI.shape == (rank, columns)
    assert found.b_OR.shape == (rows, rank)
    left = (delta - scale * found.b_OR @ found.a_RI).double().norm()
    tail = torch.linalg.svdvals(delta.double())[rank:].square().sum().sqrt()
    # Eckart and Young: no matrix of this rank is nearer than the tail of the singular values.
    torch.testing.assert_close(left, tail, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.energy_share, float(1 - tail**2 / delta.double().square().sum()), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        found.error, float(tail / delta.double().norm()), rtol=1e-2, atol=2e-3
    )


def test_a_balanced_split_gives_both_factors_the_same_norm():
    found = split_dense_update(torch.randn(16, 12), rank=4)
    torch.testing.assert_close(found.a_RI.norm(dim=1), found.b_OR.norm(dim=0))


def test_split_b_leaves_a_with_orthonormal_rows():
    found = split_dense_update(torch.randn(16, 12), rank=4, split="b")
    torch.testing.assert_close(found.a_RI @ found.a_RI.t(), torch.eye(4), atol=1e-5, rtol=0)


def test_an_update_of_zero_loses_nothing_and_gives_zero_factors():
    found = split_dense_update(torch.zeros(6, 4), rank=2)
    assert found.energy_share == 1.0
    assert found.error == 0.0
    assert not (found.b_OR @ found.a_RI).any()


def test_an_update_of_low_rank_is_kept_whole():
    delta = torch.randn(20, 3) @ torch.randn(3, 15)
    found = split_dense_update(delta, rank=3)
    assert found.energy_share > 1 - 1e-6
    torch.testing.assert_close(found.b_OR @ found.a_RI, delta, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_the_matrix_has_not_is_refused_with_the_ranks_it_has(rank):
    with pytest.raises(BadRank, match=r"use 1\.\.4"):
        split_dense_update(torch.randn(6, 4), rank=rank)


STRUCTURES = ("rows", "columns", "blocks")


def _structured(structure, shape, density, rank):
    sides = compute_block_sides(structure, shape, density=density, rank=rank)
    rows, columns = (
        torch.randperm(side)[:count].sort().values for side, count in zip(shape, sides, strict=True)
    )
    return BlockMask(shape, rows, columns)


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
    found = split_sparse_update(values, mask, rank=rank, scale=2.0, split=split)
    delta = make_dense_delta(values, mask).double()
    left = (delta - 2.0 * found.b_OR.double() @ found.a_RI.double()).norm() / delta.norm()
    assert left <= 1e-6
    assert found.error <= 1e-6
    assert found.energy_share == pytest.approx(1.0, abs=1e-6)
    assert found.effective_rank <= compute_exact_rank(
        structure, (rows, columns), density=density, rank=rank
    )


@settings(deadline=None, max_examples=40)
@given(
    side=st.sampled_from([30, 500]),
    wide=st.sampled_from([40, 620]),
    rank=st.integers(1, 12),
    rescale=st.sampled_from(["none", "norm", "projection"]),
    residual=st.sampled_from(["drop", "keep", "fold"]),
)
def test_what_is_left_after_the_hand_off_is_what_it_says(side, wide, rank, rescale, residual):
    mask = draw_random_mask(seed=0, name="x", shape=(side, wide), density=0.03)
    torch.manual_seed(rank)
    values = torch.randn(mask.nnz)
    found = split_sparse_update(
        values, mask, rank=rank, scale=0.5, rescale=rescale, residual=residual
    )
    delta = make_dense_delta(values, mask).double()
    product = 0.5 * found.b_OR.double() @ found.a_RI.double()
    assert float((delta - product).norm() / delta.norm()) == pytest.approx(found.error, rel=1e-4)
    assert found.norm == pytest.approx(float(delta.norm()), rel=1e-6)
    tail = torch.linalg.svdvals(delta)
    kept = float(tail[:rank].square().sum() / tail.square().sum())
    assert found.energy_share == pytest.approx(kept, rel=1e-5)
    if rescale == "norm":
        assert float(product.norm()) == pytest.approx(found.norm, rel=1e-4)
    if residual == "drop":
        assert found.residual is None
        return
    start = product if residual == "fold" else torch.zeros_like(product)
    after = make_dense_delta(found.residual, mask).double() - start + product
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
    found = split_sparse_update(values, mask, rank=4, scale=1.0, rescale="projection")
    there = compute_on_mask(found.a_RI, found.b_OR, mask)
    best = (values - there).norm()
    for stretch in (0.9, 0.99, 1.01, 1.1):
        assert (values - stretch * there).norm() > best


def test_values_of_zero_hand_off_to_zero_factors_whatever_is_asked():
    mask = draw_random_mask(seed=0, name="x", shape=(600, 500), density=0.01)
    for rescale in ("none", "norm", "projection"):
        found = split_sparse_update(torch.zeros(mask.nnz), mask, rank=4, scale=1.0, rescale=rescale)
        assert (found.energy_share, found.error, found.effective_rank) == (1.0, 0.0, 0)
        assert not found.b_OR.any() and torch.isfinite(found.a_RI).all()


def test_factors_that_are_refined_are_judged_as_they_then_are():
    mask = draw_random_mask(seed=0, name="x", shape=(60, 40), density=0.1)
    values = torch.randn(mask.nnz)

    def refine(a_RI, b_OR, effective):
        return apply_factor_masks(a_RI, b_OR, 0.5, 0, "x")

    found = split_sparse_update(values, mask, rank=4, scale=2.0, residual="keep", refine=refine)
    product = 2.0 * found.b_OR.double() @ found.a_RI.double()
    delta = make_dense_delta(values, mask).double()
    error = float((delta - product).norm() / delta.norm())
    assert found.error == pytest.approx(error, rel=1e-6)
    assert found.energy_share == pytest.approx(max(0.0, 1 - error**2), abs=1e-6)
    where = mask.positions
    after = (make_dense_delta(found.residual, mask).double() + product).flatten()[where]
    torch.testing.assert_close(after, delta.flatten()[where], rtol=1e-4, atol=1e-5)
