"""The names under which PEFT stores the factors of a layer, and back. No torch.

PEFT wraps a module once for each of its targeted parameters, in the order in which the module holds
them: the last one is the outermost wrapper, and `.base_layer` leads to each earlier one. The files
do not name a wrapper's parameter, so `target_parameters` lists them in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from slora.layers.shapes import LayerShape

PEFT_PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
INNER = ".base_layer"
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"


def make_factor_prefixes(layers: Iterable[str], experts: Sequence[str]) -> dict[str, str]:
    """Return the prefix of each layer's two keys. `experts`: those of the layers that are
    parameters, in the order in which their module holds them.
    """
    prefixes = {name: f"{PEFT_PREFIX}{name}" for name in layers}
    for module, parameters in _group_by_module(experts).items():
        for depth, name in enumerate(reversed(parameters)):
            prefixes[name] = f"{PEFT_PREFIX}{module}{INNER * depth}"
    return prefixes


def find_layer_names(
    ranks: Mapping[str, int], rank: int, target_parameters: Sequence[str]
) -> dict[str, str]:
    """Return the layer of each prefix, given the rows of its A. Raise ValueError if it can't be
    told. Only the A of experts has more rows than the rank.
    """
    layers = {prefix: prefix.removeprefix(PEFT_PREFIX) for prefix in ranks}
    depths: dict[str, list[str]] = {}
    for prefix in (prefix for prefix, rows in ranks.items() if rows != rank):
        depths.setdefault(prefix.replace(INNER, "").removeprefix(PEFT_PREFIX), []).append(prefix)
    for module, module_prefixes in depths.items():
        parameters = [
            parameter.rpartition(".")[2]
            for parameter in target_parameters
            if f".{module}.{parameter.rpartition('.')[2]}".endswith(f".{parameter}")
        ]
        if not parameters:
            continue
        if len(parameters) != len(module_prefixes):
            raise ValueError(f"{module}: {len(module_prefixes)} pairs of factors for {parameters}")
        for prefix in module_prefixes:
            depth = prefix.count(INNER)
            layers[prefix] = f"{module}.{parameters[len(parameters) - 1 - depth]}"
    return layers


def read_layer_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object]
) -> dict[str, LayerShape]:
    """Return the shape of each layer of a LoRA's file. Raise ValueError, KeyError,
    TypeError for one that is no LoRA.
    """
    rank = int(str(config["r"]))
    a_shapes = {
        key.removesuffix(A_SUFFIX): shape for key, shape in shapes.items() if key.endswith(A_SUFFIX)
    }
    targets = config.get("target_parameters") or []
    assert isinstance(targets, list)
    layers = {}
    ranks = {prefix: shape[0] for prefix, shape in a_shapes.items()}
    for prefix, name in find_layer_names(ranks, rank, targets).items():
        experts = a_shapes[prefix][0] // rank
        rows = shapes[prefix + B_SUFFIX][0] * experts
        layers[name] = LayerShape(rows, a_shapes[prefix][1], experts)
    return layers


def _group_by_module(parameters: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return groups
