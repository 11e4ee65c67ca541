"""Which linear layers of a model are trained: all but the head, or those that patterns name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from slora.names import select


def linear_layers(model: nn.Module, *, head: Iterable[nn.Module]) -> dict[str, nn.Linear]:
    """Every linear layer by full name, in the model's order, without the modules `head`."""
    left_out = {id(inner) for module in head for inner in module.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in left_out
    }


def find_targets(
    model: nn.Module, wanted: str | Sequence[str], *, head: Iterable[nn.Module]
) -> dict[str, nn.Linear]:
    """The layers to train. Raises BadTargets for a pattern without a match."""
    linears = linear_layers(model, head=head)
    return {name: linears[name] for name in select(tuple(linears), wanted)}
