"""Masks by score: the best entries, rows, columns and blocks, in each layer or over all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan.estimate.from_spec import DATA_FREE_SCORES
from jobs.spec.schema import SCORES
from slora.errors import BadMask
from slora.layers.patterns import count_entries
from slora.masks.mask import BlockMask, EntryMask
from slora.masks.registry import SCORERS, load_scorer
from slora.masks.selection import MaskRequest, choose_masks, find_scorer, select_top
from slora.masks.sizes import (
    STRUCTURES,
    compute_block_sides,
    compute_exact_rank,
    count_mask_entries,
)
from slora.masks.top_k import CandidatePool

SHAPES = {"a": (12, 8), "b": (6, 20), "c": (9, 9)}


def _request(**changes) -> MaskRequest:
    options = {
        "mask": "fisher", "score": "gradient", "sizing": "rank", "rank": 3, "density": 0.1,
        "allocation": "uniform", "seed": 0,
    }  # fmt: skip
    return MaskRequest(**{**options, **changes})


def _scores(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.rand(shape) for name, shape in SHAPES.items()}


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 60),
    count=st.integers(1, 60),
    kinds=st.integers(1, 4),
)
def test_the_top_are_the_highest_values_and_ties_go_to_the_first(size, count, kinds):
    torch.manual_seed(size)
    score = torch.randint(0, kinds, (size,)).float()
    result = select_top(score, min(count, size)).tolist()
    expected = sorted(range(size), key=lambda at: (-float(score[at]), at))[: min(count, size)]
    assert result == sorted(expected)


@pytest.mark.parametrize("density", [0.01, 0.1, 1.0])
def test_each_layer_has_its_best_entries_and_exactly_as_many_as_the_density_says(density):
    scores = _scores()
    masks = choose_masks(SHAPES, _request(density=density), scores.items())
    for name, mask in masks.items():
        assert isinstance(mask, EntryMask)
        assert mask.nnz == count_entries(SHAPES[name], density)
        flat = scores[name].flatten()
        rest = torch.ones(flat.numel(), dtype=torch.bool)
        rest[mask.positions] = False
        assert not rest.any() or flat[mask.positions].min() >= flat[rest].max()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structured_masks_are_the_rows_and_columns_with_the_highest_sums(structure):
    scores = _scores()
    for name, mask in choose_masks(SHAPES, _request(mask=structure), scores.items()).items():
        assert isinstance(mask, BlockMask)
        sides = compute_block_sides(structure, SHAPES[name], density=0.1, rank=3)
        assert (mask.rows.numel(), mask.columns.numel()) == sides
        score = scores[name].double()
        if structure != "columns":
            assert mask.rows.tolist() == select_top(score.sum(1), sides[0]).tolist()
        if structure != "rows":
            assert mask.columns.tolist() == select_top(score[mask.rows].sum(0), sides[1]).tolist()


@settings(deadline=None, max_examples=100)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    rank=st.integers(1, 32),
    density=st.floats(0.0005, 1.0),
    structure=st.sampled_from(STRUCTURES),
)
def test_sizes_never_pass_the_rank_nor_the_matrix(rows, columns, rank, density, structure):
    shape = (rows, columns)
    tall, wide = compute_block_sides(structure, shape, density=density, rank=rank)
    assert 1 <= tall <= rows and 1 <= wide <= columns
    assert (
        compute_exact_rank(structure, shape, density=density, rank=rank)
        == min(tall, wide)
        <= max(rank, 1)
    )
    assert count_mask_entries(structure, shape, density=density, rank=rank) == tall * wide
    free = compute_block_sides(structure, shape, density=density, rank=None)
    assert min(free) <= min(rows, columns)


def test_competing_layers_share_the_budget_by_score():
    scores = _scores()
    scores["b"] *= 3
    masks = choose_masks(SHAPES, _request(allocation="global"), scores.items())
    budget = sum(count_entries(shape, 0.1) for shape in SHAPES.values())
    assert sum(mask.nnz for mask in masks.values()) == budget
    assert masks["b"].nnz > count_entries(SHAPES["b"], 0.1)
    every = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.cat([scores[n].flatten()[m.positions] for n, m in masks.items()])
    lost = sorted(chosen.tolist())[len(SHAPES) :]
    # Except for the one entry that each layer keeps, the chosen ones have the best scores.
    assert min(lost) >= sorted(every.tolist())[-budget - len(SHAPES)]


def test_a_layer_without_a_good_score_keeps_its_best_entry():
    scores = _scores()
    scores["c"] *= 1e-6
    masks = choose_masks(SHAPES, _request(allocation="global"), scores.items())
    assert masks["c"].positions.tolist() == [int(scores["c"].argmax())]


@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_rows_and_columns_compete_too_within_the_rank(structure):
    scores = _scores()
    scores["a"] *= 9
    masks = choose_masks(SHAPES, _request(mask=structure, allocation="global"), scores.items())
    for name, mask in masks.items():
        many = mask.rows.numel() if structure == "rows" else mask.columns.numel()
        assert 1 <= many <= 3, name


def test_the_pool_holds_at_most_twice_as_many_candidates_as_slots():
    pool = CandidatePool(10, max_per_layer=None)
    for name in "abcdefgh":
        pool.offer(name, torch.rand(500))
        assert pool._scores.numel() <= 10
    assert sum(positions.numel() for positions in pool.select_positions().values()) == 10


def test_random_rows_need_no_score_and_come_from_seed_name_and_shape():
    first = choose_masks(SHAPES, _request(mask="rows", score="random"))
    second = choose_masks(SHAPES, _request(mask="rows", score="random"))
    other = choose_masks(SHAPES, _request(mask="rows", score="random", seed=1))
    assert {n: m.digest() for n, m in first.items()} == {n: m.digest() for n, m in second.items()}
    assert any(first[name].digest() != other[name].digest() for name in SHAPES)
    assert find_scorer(_request(mask="rows", score="random")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"mask": "random", "allocation": "global"}, "uniform", id="random"),
        pytest.param({"mask": "blocks", "allocation": "global"}, "rows", id="blocks"),
        pytest.param({"mask": "wild"}, "use magnitude, gradient", id="unknown"),
        pytest.param({"mask": "moduleless"}, "no_such_module", id="module"),
        pytest.param({"mask": "absent"}, "no attribute 'NONE'", id="attribute"),
        pytest.param({"mask": "function"}, "is a function", id="kind"),
    ],
)
def test_an_impossible_mask_is_refused_with_a_fix(changes, message):
    with pytest.raises(BadMask, match=message):
        choose_masks(SHAPES, _request(**changes), _scores().items())


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        pytest.param(lambda s: s.pop("c"), "the score of c is missing", id="missing"),
        pytest.param(
            lambda s: s.update(a=torch.rand(3, 3)), r"a: the score has shape \(3, 3\)", id="shape"
        ),
        pytest.param(lambda s: s["b"].fill_(float("nan")), "not finite", id="nan"),
        pytest.param(
            lambda s: s.update(z=torch.rand(2, 2)), "z: the score has shape", id="unknown"
        ),
    ],
)
def test_scores_are_checked_before_use(corrupt, message):
    scores = _scores()
    corrupt(scores)
    with pytest.raises(BadMask, match=message):
        choose_masks(SHAPES, _request(), scores.items())


def test_the_strategy_of_another_package_is_loaded_by_the_name_of_its_entry_point():
    result = load_scorer("loudest")
    assert result.name == "loudest" and result.needs_data


def test_an_import_path_is_no_strategy():
    with pytest.raises(BadMask, match="unknown mask strategy"):
        load_scorer("tests.custom_scorer:LOUDEST")


def test_no_package_replaces_a_built_in_strategy():
    assert load_scorer("fisher") is SCORERS["fisher"]


@pytest.mark.parametrize("name", SCORERS)
def test_every_score_has_the_shape_of_its_weight(name):
    weight, gradients = torch.randn(5, 3), torch.randn(4, 5, 3)
    scorer = SCORERS[name]
    total = None
    if scorer.unit is not None:
        total = torch.stack([scorer.unit(weight, g).double() for g in gradients]).sum(0)
    result = scorer.finish(weight, total, 4)
    expected = {
        "magnitude": weight.abs(),
        "gradient": gradients.abs().mean(0),
        "fisher": gradients.square().mean(0),
        "snip": (gradients * weight).mean(0).abs(),
    }[name]
    torch.testing.assert_close(result.float(), expected)


def test_the_spec_knows_the_same_strategies_as_the_registry():
    assert set(SCORES) == {"random", *SCORERS}
    assert set(DATA_FREE_SCORES) == {
        "random",
        *(name for name, scorer in SCORERS.items() if not scorer.needs_data),
    }
