"""The layers that a plan adapts: patterns, ranks that fit them, and what is left out."""

from __future__ import annotations

import pytest

from jobs.plan.plan import ModelShape
from tests.jobs.plan.plans import SHAPE, list_faults, make_test_plan


def test_a_rank_above_the_smallest_target_names_it():
    [fault] = list_faults(method={"rank": 5, "targets": ["q_proj", "k_proj"]})
    assert fault.key == "method.rank"
    assert "(4 x 8, model.layers.0.attn.k_proj)" in fault.problem and "4 or less" in fault.remedy


def test_all_linear_leaves_out_layers_smaller_than_the_rank_and_says_so():
    plan = make_test_plan(method={"rank": 5})
    assert plan.targets == tuple(name for name in SHAPE.linears if "k_proj" not in name)
    left_out = (
        "not adapted, because smaller than the rank of 5: attn.k_proj "
        "(1 in all, the smallest has 4 x 8)"
    )
    assert left_out in plan.notes
    assert not any("not adapted" in note for note in make_test_plan(method={"rank": 4}).notes)
    [fault] = list_faults(method={"rank": 17})
    assert fault.key == "method.rank" and "k_proj" in fault.problem


def test_only_what_is_a_target_bounds_the_rank():
    assert make_test_plan(method={"rank": 8, "targets": ["q_proj", "up_proj"]}).targets == (
        "model.layers.0.attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.attn.q_proj",
    )  # fmt: skip
    assert make_test_plan(method={"rank": 4})


@pytest.mark.parametrize("kind", ["sparse", "full"])
def test_a_kind_without_a_low_rank_stage_is_bound_by_no_rank(kind: str):
    assert make_test_plan(method={"kind": kind, "rank": 1000})


PATTERNS = {
    "last part": (["q_proj"], [0, 3]),
    "last parts": (["attn.k_proj"], [1]),
    "glob": (["model.layers.0.*"], [0, 1, 2]),
    "glob in a part": (["*_proj"], [0, 1, 2, 3]),
    "several, each layer once": (["up_proj", "mlp.*", "k_proj"], [1, 2]),
    "whole name": (["model.layers.1.attn.q_proj"], [3]),
}


@pytest.mark.parametrize(("patterns", "chosen"), PATTERNS.values(), ids=PATTERNS)
def test_patterns_choose_layers_in_the_models_order(patterns: list[str], chosen: list[int]):
    names = list(SHAPE.linears)
    assert make_test_plan(method={"targets": patterns}).targets == tuple(names[at] for at in chosen)


def test_a_pattern_without_a_match_lists_the_layers():
    first, second = list_faults(method={"targets": ["proj", "q_proj", "lm_head"]})
    assert (first.key, second.key) == ("method.targets[0]", "method.targets[2]")
    assert "'proj' matches no linear layer" in first.problem
    assert first.remedy == "Available: attn.q_proj, attn.k_proj, mlp.up_proj."


def test_a_model_without_linear_layers_is_refused():
    [fault] = list_faults(ModelShape(10, {}, 0))
    assert fault.key == "model.path" and "no linear layer" in fault.problem
    assert make_test_plan(ModelShape(10, {}, 0), method={"kind": "full"})
