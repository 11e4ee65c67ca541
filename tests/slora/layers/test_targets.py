"""Targets by name: every linear layer but the head, or those that patterns match."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slora.errors import BadTargets, UnsupportedLayer
from slora.layers.eligibility import list_excluded
from slora.layers.patterns import list_layer_kinds, select_layers
from slora.layers.targets import classify_parameters, find_targets

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        pytest.param("all-linear", [0, 1, 2, 3], id="all"),
        pytest.param(["q_proj"], [0, 2], id="last part"),
        pytest.param(["self_attn.q_proj"], [0, 2], id="last parts"),
        pytest.param(["model.layers.1.*"], [2, 3], id="glob"),
        pytest.param(["*.0.mlp.up_proj", "q_proj"], [0, 1, 2], id="two patterns"),
        pytest.param(["model.layers.0.mlp.up_proj"], [1], id="whole name"),
    ],
)
def test_patterns_choose_layers(patterns, chosen):
    assert select_layers(NAMES, patterns) == [NAMES[index] for index in chosen]


def test_a_pattern_without_a_match_lists_the_layers_of_the_model():
    with pytest.raises(BadTargets) as refused:
        select_layers(NAMES, ["q_proj", "k_proj"])
    assert "'k_proj'" in str(refused.value)
    assert "self_attn.q_proj, mlp.up_proj" in str(refused.value)


def test_part_of_a_word_is_no_match():
    with pytest.raises(BadTargets):
        select_layers(NAMES, ["proj"])


def test_the_head_and_embeddings_are_never_targets():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    assert list(find_targets(model, "all-linear", head=[model["head"]])) == ["inner"]


def test_kinds_are_short_and_each_once():
    assert list_layer_kinds([*NAMES, "pooler.dense"]) == (
        "self_attn.q_proj",
        "mlp.up_proj",
        "pooler.dense",
    )


class TinyExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 3, 4))
        self.bias = nn.Parameter(torch.zeros(2, 3))


class TopKRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 4))


def _mixture() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"embed": nn.Embedding(4, 4), "q_proj": nn.Linear(4, 4), "conv": Conv1D(3, 4),
         "norm": nn.LayerNorm(4), "experts": TinyExperts(), "shared_gate": nn.Linear(4, 1),
         "gate_proj": nn.Linear(4, 3), "router": TopKRouter(),
         "depthwise": nn.Conv1d(4, 4, 3, groups=4)}
    )  # fmt: skip


def test_every_parameter_has_a_layer_or_a_reason():
    records = {record.name: record for record in classify_parameters(_mixture(), min_side=3)}
    assert {name: r.layer for name, r in records.items() if r.is_target} == {
        "q_proj.weight": "q_proj",
        "conv.weight": "conv",
        "gate_proj.weight": "gate_proj",
        "experts.gate_up_proj": "experts.gate_up_proj",
    }
    assert list_excluded(records.values()) == [
        "router of experts: shared_gate, router.weight (2 weights, 12 parameters)",
        "convolution: depthwise.weight (1 weight, 12 parameters)",
    ]
    assert sum(r.size for r in records.values()) == sum(p.numel() for p in _mixture().parameters())
    small = [r for r in classify_parameters(_mixture(), min_side=4) if "smaller" in r.reason]
    assert [r.layer for r in small] == ["conv", "experts.gate_up_proj", "gate_proj"]


def test_layers_that_peft_refuses_are_no_targets():
    model = nn.ModuleDict({"in_proj": nn.Linear(4, 4), "out_proj": nn.Linear(4, 4)})
    model.config = SimpleNamespace(model_type="falcon_h1")
    assert list(find_targets(model, "all-linear", head=[])) == ["in_proj"]
    with pytest.raises(UnsupportedLayer, match=r"out_proj \(a fused kernel .* PEFT refuses it"):
        find_targets(model, ["out_proj"], head=[])
    model.config.model_type = "llama"
    assert list(find_targets(model, ["out_proj"], head=[])) == ["out_proj"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        pytest.param(["embed"], r"embed \(Embedding\) can't be adapted", id="embedding"),
        pytest.param(["norm"], r"norm \(LayerNorm\) can't be adapted", id="norm"),
        pytest.param(["depthwise"], r"depthwise \(Conv1d\)", id="convolution"),
        pytest.param(["experts"], "for example experts.gate_up_proj", id="experts"),
        pytest.param(["shared_gate"], r"shared_gate \(router of experts\)", id="router"),
    ],
)
def test_another_kind_of_module_is_refused_by_name(patterns, message):
    with pytest.raises(UnsupportedLayer, match=message):
        find_targets(_mixture(), patterns, head=[])


def test_conv1d_is_a_target_as_a_linear_layer_is():
    assert list(find_targets(_mixture(), ["q_proj", "conv"], head=[])) == ["q_proj", "conv"]


def test_a_weight_that_two_modules_share_is_no_target():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"q_proj": shared, "inner": nn.ModuleDict({"r_proj": shared})})
    with pytest.raises(UnsupportedLayer, match=r"shares its weight with inner\.r_proj"):
        find_targets(model, ["q_proj"], head=[])
    model["other"] = nn.Linear(4, 4)
    assert list(find_targets(model, "all-linear", head=[])) == ["other"]
    block = nn.ModuleDict({"k_proj": nn.Linear(4, 4)})
    used_twice = nn.ModuleDict({"first": block, "second": block})
    assert list(find_targets(used_twice, "all-linear", head=[])) == ["first.k_proj"]
    tied = nn.ModuleDict({"embed": nn.Embedding(4, 4), "out": nn.Linear(4, 4, bias=False)})
    tied["out"].weight = tied["embed"].weight
    with pytest.raises(UnsupportedLayer, match="shares its weight with embed"):
        find_targets(tied, ["out"], head=[])
    assert not find_targets_or_none(tied)


def find_targets_or_none(model):
    """The head may share its weight with the embedding: it is no target."""
    model["more"] = nn.Linear(4, 4)
    return [n for n in find_targets(model, ["more"], head=[model["out"]]) if n != "more"]
