"""Find the layers to train: all linear layers and fused experts, or those that patterns match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from slora.errors import UnsupportedLayer
from slora.layers.base_layers import get_features, is_experts_weight, iter_layers
from slora.layers.eligibility import UNSUPPORTED_BY_PEFT, ParameterRecord, exclude_small
from slora.layers.patterns import match_pattern, select_layers

CONVOLUTIONS = (nn.modules.conv._ConvNd,)
HEAD, OUTPUT = "head, trained completely", "output projection"
OUTSIDE = "outside the language model"


def classify_parameters(
    model: nn.Module,
    *,
    head: Iterable[nn.Module] = (),
    towers: Iterable[nn.Module] = (),
    min_side: int = 1,
) -> list[ParameterRecord]:
    """Return a record of each parameter of the model: its layer, or why it is not adapted.

    `head`, `towers`: modules that are never targets; towers are those of other modalities.
    `min_side`: the rank that a target must have room for. Reads names and shapes only, so that a
    model on the meta device will do.
    """
    layers = {f"{name}.weight": (name, layer) for name, layer in iter_layers(model)}
    layers |= dict(_iter_experts(model))
    excluded = _explain_exclusions(model, list(head), list(towers))
    records, counted = [], set()
    for module_name, module in model.named_modules():
        for short_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{short_name}" if module_name else short_name
            # A tied weight counts once.
            size = (
                0 if id(parameter) in counted else getattr(parameter, "ds_numel", parameter.numel())
            )
            counted.add(id(parameter))
            if name not in layers:
                reason = _describe_parameter(module, short_name, parameter)
                records.append(ParameterRecord(name, size, reason=reason))
                continue
            layer_name, layer = layers[name]
            reason = excluded.get(module_name, "")
            records.append(ParameterRecord(name, size, layer_name, get_features(layer), reason))
    return exclude_small(_exclude_shared(model, records), min_side)


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    *,
    head: Iterable[nn.Module],
    towers: Iterable[nn.Module] = (),
    min_side: int = 1,
) -> dict[str, Any]:
    """Return the layers to train, by name; fused experts by the name of their parameter.

    `all-linear` leaves out what can't be adapted: see `classify_parameters`. Raise BadTargets for
    a pattern without a match, and UnsupportedLayer for one that matches nothing else.
    """
    records = classify_parameters(model, head=head, towers=towers)
    layers = dict(iter_layers(model))
    if targets == "all-linear":
        names = [r.layer for r in exclude_small(records, min_side) if r.layer and r.is_target]
        return {name: layers[name] for name in select_layers(names, targets)}
    names = [record.layer for record in records if record.layer and record.is_target]
    patterns = [targets] if isinstance(targets, str) else list(targets)
    for pattern in patterns:
        if not any(match_pattern(name, pattern) for name in names):
            _refuse_kind(model, records, pattern)
    return {name: layers[name] for name in select_layers(names, patterns)}


def _iter_experts(model: nn.Module) -> Iterator[tuple[str, tuple[str, Any]]]:
    for name, layer in iter_layers(model):
        if not isinstance(layer, nn.Module):
            yield name, (name, layer)


def _explain_exclusions(
    model: nn.Module, head: list[nn.Module], towers: list[nn.Module]
) -> dict[str, str]:
    """Return why modules are never adapted, by name."""
    in_head = {id(inner): OUTSIDE for module in towers for inner in module.modules()}
    in_head |= {id(inner): HEAD for module in head for inner in module.modules()}
    if (
        callable(get_output := getattr(model, "get_output_embeddings", None))
        and (output := get_output()) is not None
    ):
        in_head[id(output)] = OUTPUT
    refused = UNSUPPORTED_BY_PEFT.get(getattr(getattr(model, "config", None), "model_type", ""), ())
    modules, reasons = dict(model.named_modules()), {}
    for name, module in modules.items():
        if reason := in_head.get(id(module)):
            reasons[name] = reason
        elif name.rpartition(".")[2] in refused:
            reasons[name] = "a fused kernel reads it past the layer: PEFT refuses it"
        elif type(module).__name__ == "NonDynamicallyQuantizableLinear":
            reasons[name] = "MultiheadAttention reads it past the layer"
        elif _is_router(name, modules):
            reasons[name] = "router of experts"
    return reasons


def _is_router(name: str, modules: dict[str, nn.Module]) -> bool:
    """Return True for a gate beside experts, or inside a router beside them."""
    parent, _, own_name = name.rpartition(".")
    for owner, child in (
        (parent, own_name),
        (parent.rpartition(".")[0], parent.rpartition(".")[2]),
    ):
        is_gate = child == "gate" or child.endswith("_gate") or "router" in child
        if is_gate and any("expert" in sibling for sibling in _list_children(modules.get(owner))):
            return True
    return False


def _list_children(module: nn.Module | None) -> list[str]:
    return [name for name, _ in module.named_children()] if module is not None else []


def _describe_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """Return why a parameter that makes no layer is not adapted."""
    kind = type(module).__name__
    dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
    if dimensions < 2 or name == "bias" or name.endswith("_bias"):
        return "norm or bias"
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Embedding) or "embed" in kind.lower():
        return "embedding"
    if "router" in kind.lower():
        return "router of experts"
    return f"weight of {kind}, which is no linear layer"


def _exclude_shared(model: nn.Module, records: list[ParameterRecord]) -> list[ParameterRecord]:
    """Exclude layers whose weight another module holds too: an update would change both.

    One module that a model uses several times, by any number of names of its parent, is one layer.
    """
    owners: dict[int, dict[tuple[int, str], str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for child_name, child in module.named_children():
            for short_name, parameter in child.named_parameters(recurse=False):
                path = ".".join(part for part in (name, child_name, short_name) if part)
                places = owners.setdefault(id(parameter), {})
                places.setdefault((id(module), child_name), path)
    shared = {}
    for places in owners.values():
        paths = list(dict.fromkeys(places.values()))
        for path in paths if len(paths) > 1 else ():
            shared[path] = paths[0] if path != paths[0] else paths[1]
    return [
        ParameterRecord(
            record.name, record.size, record.layer, record.shape,
            f"shares its weight with {shared[record.name].removesuffix('.weight')}",
        )
        if record.is_target and record.name in shared
        else record
        for record in records
    ]  # fmt: skip


def _refuse_kind(model: nn.Module, records: list[ParameterRecord], pattern: str) -> None:
    """Raise UnsupportedLayer if a pattern matches a module with weights that can't be adapted."""
    for record in records:
        if record.layer and record.reason and match_pattern(record.layer, pattern):
            raise UnsupportedLayer(record.layer, record.reason)
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not name or not parameters or not match_pattern(name, pattern):
            continue
        experts = [short for short, p in parameters.items() if is_experts_weight(module, p)]
        hint = f" as one: name its weights, for example {name}.{experts[0]}" if experts else ""
        raise UnsupportedLayer(name, f"{type(module).__name__}{hint}")
