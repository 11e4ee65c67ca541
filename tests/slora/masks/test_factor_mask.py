"""Masks of the two factors: their counts, their balance, and that a seed and a name decide them."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slora.errors import BadMask
from slora.layers.shapes import LayerShape, get_factor_shapes
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.sizes import count_trained_factors

KINDS = ("balanced", "random", "lines")


def _draw(kind, shape, rank, density, *, seed=0, name="x"):
    """Return both masks as matrices of zeros and ones."""
    positions = FactorMaskRule(kind, density, seed).draw(name, shape, rank)
    matrices = []
    for entries, size in zip(positions, get_factor_shapes(shape, rank), strict=True):
        assert entries.dtype == torch.int64 and (entries[1:] > entries[:-1]).all()
        matrices.append(torch.zeros(size, dtype=torch.int64))
        matrices[-1].view(-1)[entries] = 1
    return matrices


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 9),
    experts=st.integers(1, 3),
    density=st.floats(0.01, 1.0),
    kind=st.sampled_from(KINDS),
)
def test_masks_have_the_planned_counts_in_every_expert(rows, columns, rank, experts, density, kind):
    shape = LayerShape(rows * experts, columns, experts)
    a_RI, b_OR = _draw(kind, shape, rank, density)
    counts = count_trained_factors(kind, shape, rank=rank, density=density)
    assert (int(a_RI.sum()), int(b_OR.sum())) == counts
    for matrix in (a_RI, b_OR):
        assert len({int(part.sum()) for part in matrix.chunk(experts)}) == 1


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 9),
    density=st.floats(0.01, 1.0),
)
def test_balanced_masks_serve_every_feature_and_every_rank_alike(rows, columns, rank, density):
    for matrix in _draw("balanced", (rows, columns), rank, density):
        for sums in (matrix.sum(0), matrix.sum(1)):
            assert int(sums.max()) - int(sums.min()) <= 1


def test_lines_are_whole_columns_of_a_and_whole_rows_of_b():
    a_RI, b_OR = _draw("lines", (24, 16), 4, 0.25)
    assert sorted(a_RI.sum(0).tolist()) == [0] * 12 + [4] * 4
    assert sorted(b_OR.sum(1).tolist()) == [0] * 18 + [4] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_name_decide_a_mask_and_each_expert_has_its_own(kind):
    shape = LayerShape(60, 20, 2)
    first, again = _draw(kind, shape, 4, 0.25), _draw(kind, shape, 4, 0.25)
    assert all(map(torch.equal, first, again))
    for changed in (
        _draw(kind, shape, 4, 0.25, seed=1),
        _draw(kind, shape, 4, 0.25, name="y"),
    ):
        assert not any(map(torch.equal, first, changed))
    for matrix in first:
        assert not torch.equal(*matrix.chunk(2))


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("balanced", "8baa8d76586d9ad6"),
        ("random", "4b4611d62f7cc084"),
        ("lines", "bdee60f925e343f6"),
    ],
)
def test_the_bits_of_a_mask_are_a_file_format(kind, digest):
    # Stored adapters hold values without positions: another draw would scramble them.
    a, b = FactorMaskRule(kind, 0.3, 7).draw("model.layers.0.q_proj", (48, 40), 5)
    drawn = hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()
    assert drawn[:16] == digest


def test_a_density_of_zero_is_refused():
    with pytest.raises(BadMask, match="density 0"):
        FactorMaskRule("balanced", 0.0, 0).draw("x", (4, 4), 2)
