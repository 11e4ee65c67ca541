"""Find the layers to train: all linear layers except the head, or those that patterns match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from slora.errors import UnsupportedLayer
from slora.layers.base_layers import is_adaptable
from slora.layers.patterns import match_pattern, select_layers


def list_linear_layers(model: nn.Module, *, head: Iterable[nn.Module]) -> dict[str, Any]:
    """Return every linear layer and Conv1D by full name, in the model's order, without `head`."""
    excluded = {id(inner) for module in head for inner in module.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if is_adaptable(module) and id(module) not in excluded
    }


def find_targets(
    model: nn.Module, targets: str | Sequence[str], *, head: Iterable[nn.Module]
) -> dict[str, Any]:
    """Return the layers to train, by name.

    Raise BadTargets for a pattern without a match, and UnsupportedLayer for one that matches a
    module of another kind. `all-linear` raises it too if a model has experts fused into one
    tensor, which it would otherwise skip silently.
    """
    head = list(head)
    linears = list_linear_layers(model, head=head)
    _refuse_shared(model, linears)
    if targets == "all-linear":
        for name, module in model.named_modules():
            if any(parameter.ndim > 2 for parameter in module.parameters(recurse=False)):
                raise UnsupportedLayer(name, f"{type(module).__name__} (fused experts)")
        return {name: linears[name] for name in select_layers(tuple(linears), targets)}
    patterns = [targets] if isinstance(targets, str) else list(targets)
    for pattern in patterns:
        if not any(match_pattern(name, pattern) for name in linears):
            _refuse_kind(model, pattern)
    return {name: linears[name] for name in select_layers(tuple(linears), patterns)}


def _refuse_shared(model: nn.Module, linears: dict[str, Any]) -> None:
    """Raise UnsupportedLayer if a target shares its weight: an update would change both modules."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        first_name = owners.setdefault(id(weight), name)
        if first_name != name and (name in linears or first_name in linears):
            raise UnsupportedLayer(
                name, f"{type(module).__name__} that shares its weight with {first_name}"
            )


def _refuse_kind(model: nn.Module, pattern: str) -> None:
    """Raise UnsupportedLayer if a pattern matches a module with weights that is not linear."""
    for name, module in model.named_modules():
        has_parameters = any(True for _ in module.parameters(recurse=False))
        if name and has_parameters and not is_adaptable(module) and match_pattern(name, pattern):
            raise UnsupportedLayer(name, type(module).__name__)
