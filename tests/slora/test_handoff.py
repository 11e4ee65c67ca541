"""The hand-off: the best approximation of its rank, and honest figures about what is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.errors import BadRank
from slora.handoff import factor


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
    found = factor(delta, rank=rank, scale=scale, split=split)
    assert found.a_RI.shape == (rank, columns)
    assert found.b_OR.shape == (rows, rank)
    left = (delta - scale * found.b_OR @ found.a_RI).double().norm()
    tail = torch.linalg.svdvals(delta.double())[rank:].square().sum().sqrt()
    # Eckart and Young: no matrix of this rank is nearer than the tail of the singular values.
    torch.testing.assert_close(left, tail, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.kept, float(1 - tail**2 / delta.double().square().sum()), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        found.error, float(tail / delta.double().norm()), rtol=1e-2, atol=2e-3
    )


def test_a_balanced_split_gives_both_factors_the_same_norm():
    found = factor(torch.randn(16, 12), rank=4)
    torch.testing.assert_close(found.a_RI.norm(dim=1), found.b_OR.norm(dim=0))


def test_split_b_leaves_a_with_orthonormal_rows():
    found = factor(torch.randn(16, 12), rank=4, split="b")
    torch.testing.assert_close(found.a_RI @ found.a_RI.t(), torch.eye(4), atol=1e-5, rtol=0)


def test_an_update_of_zero_loses_nothing_and_gives_zero_factors():
    found = factor(torch.zeros(6, 4), rank=2)
    assert found.kept == 1.0
    assert found.error == 0.0
    assert not (found.b_OR @ found.a_RI).any()


def test_an_update_of_low_rank_is_kept_whole():
    delta = torch.randn(20, 3) @ torch.randn(3, 15)
    found = factor(delta, rank=3)
    assert found.kept > 1 - 1e-6
    torch.testing.assert_close(found.b_OR @ found.a_RI, delta, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_the_matrix_has_not_is_refused_with_the_ranks_it_has(rank):
    with pytest.raises(BadRank, match=r"use 1\.\.4"):
        factor(torch.randn(6, 4), rank=rank)
