"""The names by which PEFT finds the layers of an adapter in its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from slora.layers.base_layers import get_layer, is_conv1d
from slora.layers.factors import Factors, get_factors_shape
from slora.layers.patterns import list_layer_kinds, match_pattern


def name_targets(model: nn.Module, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Return the fields of a LoRA adapter by which PEFT finds the layers of these factors."""
    experts = tuple(name for name, pair in factors.items() if get_factors_shape(pair).experts > 1)
    linears = tuple(name for name in factors if name not in set(experts))
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    return {
        "conv1d": any(is_conv1d(get_layer(model, name)) for name in factors),
        "target_modules": choose_target_names(modules, linears),
        "target_parameters": choose_target_names(parameters, experts),
    }


def choose_target_names(names: list[str], targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the shortest names by which PEFT finds these targets and none else of the names."""
    for candidates in (
        tuple(dict.fromkeys(name.rpartition(".")[2] for name in targets)),
        list_layer_kinds(targets),
    ):
        if {
            name
            for name in names
            if any(match_pattern(name, candidate) for candidate in candidates)
        } == set(targets):
            return candidates
    return targets
