"""The names, shapes and bits of masks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slora.errors import BadMask
from slora.layers.patterns import count_entries
from slora.masks.mask import EntryMask, draw_random_mask

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(shape=SHAPES, density=st.floats(1e-6, 1.0), seed=st.integers(0, 2**63 - 1))
def test_a_mask_has_exactly_its_density_in_distinct_ascending_positions(shape, density, seed):
    mask = draw_random_mask(seed=seed, name="layer", shape=shape, density=density)
    assert mask.nnz == count_entries(shape, density) == max(1, round(shape[0] * shape[1] * density))
    assert (mask.positions.diff() > 0).all()
    assert mask.positions[0] >= 0
    assert mask.positions[-1] < shape[0] * shape[1]


def test_the_same_seed_name_and_shape_give_the_same_mask():
    first, second = (
        draw_random_mask(seed=3, name="model.layers.0.q_proj", shape=(64, 32), density=0.1)
        for _ in range(2)
    )
    assert first.digest() == second.digest()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 4}, id="seed"),
        pytest.param({"name": "model.layers.1.q_proj"}, id="layer of the same shape"),
        pytest.param({"shape": (32, 64)}, id="transposed shape"),
    ],
)
def test_another_seed_layer_or_shape_gives_another_mask(other):
    common = {"seed": 3, "name": "model.layers.0.q_proj", "shape": (64, 32), "density": 0.1}
    first, second = draw_random_mask(**common), draw_random_mask(**{**common, **other})
    overlap = len(np.intersect1d(first.positions, second.positions)) / first.nnz
    # Two independent masks of 10 % share a tenth of their entries.
    assert overlap < 0.3


def test_the_draw_of_a_mask_never_changes():
    # These figures are a promise: a change of them makes every sparse adapter unreadable.
    mask = draw_random_mask(
        seed=0, name="model.layers.0.self_attn.q_proj", shape=(8, 16), density=0.05
    )
    assert mask.positions.tolist() == PINNED


def test_all_positions_are_equally_likely():
    counts = np.zeros(40)
    for seed in range(3000):
        mask = draw_random_mask(seed=seed, name="x", shape=(5, 8), density=0.25)
        counts[mask.positions.numpy()] += 1
    # 3000 draws of 10 out of 40: 750 each, standard deviation 24.
    assert np.abs(counts - 750).max() < 5 * 24


def test_drawing_a_mask_needs_memory_for_the_mask_and_not_for_the_matrix():
    shape = (4096, 4096)
    draw_random_mask(seed=0, name="warm", shape=(8, 8), density=0.5)
    tracemalloc.start()
    mask = draw_random_mask(seed=0, name="x", shape=shape, density=0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    index = mask.positions.numel() * 8
    assert peak < 6 * index < shape[0] * shape[1]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_a_density_that_makes_no_mask_is_refused(density):
    with pytest.raises(BadMask, match="use more than 0 and at most 1"):
        draw_random_mask(seed=0, name="x", shape=(4, 4), density=density)


def test_masks_of_different_shapes_have_different_digests():
    positions = torch.tensor([0, 3])
    assert EntryMask((2, 4), positions).digest() != EntryMask((4, 2), positions).digest()


PINNED = [25, 65, 68, 71, 79, 112]
