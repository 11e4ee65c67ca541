"""Targets by name: every linear layer but the head, or what patterns say."""

from __future__ import annotations

import pytest
from torch import nn

from slora.errors import BadTargets
from slora.names import kinds, select
from slora.targets import find_targets

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        pytest.param("all-linear", [0, 1, 2, 3], id="all"),
        pytest.param(["q_proj"], [0, 2], id="last part"),
        pytest.param(["self_attn.q_proj"], [0, 2], id="last parts"),
        pytest.param(["model.layers.1.*"], [2, 3], id="glob"),
        pytest.param(["*.0.mlp.up_proj", "q_proj"], [0, 1, 2], id="two patterns"),
        pytest.param(["model.layers.0.mlp.up_proj"], [1], id="whole name"),
    ],
)
def test_patterns_choose_layers(wanted, chosen):
    assert select(NAMES, wanted) == [NAMES[place] for place in chosen]


def test_a_pattern_without_a_match_lists_what_there_is():
    with pytest.raises(BadTargets) as refused:
        select(NAMES, ["q_proj", "k_proj"])
    assert "'k_proj'" in str(refused.value)
    assert "self_attn.q_proj, mlp.up_proj" in str(refused.value)


def test_part_of_a_word_is_no_match():
    with pytest.raises(BadTargets):
        select(NAMES, ["proj"])


def test_the_head_and_embeddings_are_never_targets():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    assert list(find_targets(model, "all-linear", head=[model["head"]])) == ["inner"]


def test_kinds_are_short_and_each_once():
    assert kinds([*NAMES, "pooler.dense"]) == ("self_attn.q_proj", "mlp.up_proj", "pooler.dense")
