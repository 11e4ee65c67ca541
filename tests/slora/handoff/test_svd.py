"""The leading triplets: Lanczos and LAPACK agree, and both are the best of their rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.handoff import svd
from slora.handoff.svd import compute_dense_svd, compute_left_vectors, compute_sparse_svd
from slora.layers.sparse import make_dense_delta
from slora.masks.mask import BlockMask, draw_random_mask


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(390, 520),
    columns=st.integers(390, 520),
    rank=st.integers(1, 16),
    values=st.sampled_from(["signs", "normal"]),
)
def test_lanczos_is_as_good_as_the_full_decomposition(rows, columns, rank, values):
    torch.manual_seed(rank)
    mask = draw_random_mask(seed=rows, name="x", shape=(rows, columns), density=0.01)
    values_Z = torch.randn(mask.nnz)
    values_Z = values_Z.sign() if values == "signs" else values_Z
    u, s, vh = compute_sparse_svd(values_Z, mask, rank)
    delta = make_dense_delta(values_Z, mask).double()
    expected = torch.linalg.svdvals(delta)
    # The spectrum of such an update is flat: the k-th value is hard to tell from the next one.
    torch.testing.assert_close(s.double(), expected[:rank], rtol=1e-6, atol=1e-6)
    rest = float((delta - (u * s).double() @ vh.double()).norm())
    assert rest == pytest.approx(float(expected[rank:].norm()), rel=1e-6)


def test_the_same_update_gives_the_same_bits():
    mask = draw_random_mask(seed=0, name="x", shape=(600, 450), density=0.01)
    values = torch.randn(mask.nnz)
    for first, second in zip(
        compute_sparse_svd(values, mask, 5), compute_sparse_svd(values, mask, 5), strict=True
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("side", [40, 500])
def test_the_dense_and_the_sparse_decomposition_agree(side):
    mask = draw_random_mask(seed=0, name="x", shape=(side, side + 7), density=0.05)
    values = torch.randn(mask.nnz)
    u, s, vh = compute_sparse_svd(values, mask, 3)
    u2, s2, vh2 = compute_dense_svd(make_dense_delta(values, mask), 3)
    torch.testing.assert_close(s, s2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((u * s) @ vh, (u2 * s2) @ vh2, rtol=1e-3, atol=1e-4)


def test_a_block_of_fewer_rows_than_the_rank_is_filled_with_zeros():
    mask = BlockMask((900, 700), torch.tensor([3, 5]), torch.arange(700))
    values = torch.randn(mask.nnz)
    u, s, vh = compute_sparse_svd(values, mask, 6)
    assert s[:2].min() > 0 and not s[2:].any()
    torch.testing.assert_close((u * s) @ vh, make_dense_delta(values, mask), rtol=1e-5, atol=1e-5)


def test_an_update_of_zero_has_no_triplets():
    mask = draw_random_mask(seed=0, name="x", shape=(500, 500), density=0.01)
    assert min(mask.shape) > svd.MAX_EXACT_SIDE
    u, s, vh = compute_sparse_svd(torch.zeros(mask.nnz), mask, 4)
    assert not s.any() and torch.isfinite(u).all() and torch.isfinite(vh).all()


@pytest.mark.parametrize("decay", [0.0, 3.0, 6.0])
def test_left_vectors_span_what_lapack_finds_down_to_the_tolerance(decay):
    """Six of ten directions are there; the smallest is up to a millionth of the largest."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(60, 6, generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn(10, 6, generator=generator).double()).Q
    values = torch.logspace(0, -decay, 6, dtype=torch.float64)
    basis, found = compute_left_vectors(left * values @ right.t())
    torch.testing.assert_close(found[:6], values, rtol=1e-3, atol=0)
    assert found[6:].max() < 3e-7
    torch.testing.assert_close(basis.t() @ basis, torch.eye(10).double(), rtol=0, atol=1e-12)
    # Equal values have no vectors of their own, only a span.
    for count in range(1, 7) if decay else (6,):
        part = basis[:, :count]
        missed = left[:, :count] - part @ (part.t() @ left[:, :count])
        assert missed.norm() < 1e-8
