"""Assemble an adapter from the trained weights: which form it has, and which names are in it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.inspect.base_source import find_base_source
from jobs.train.method.runner import MethodRunner
from jobs.train.model.base_model import list_head_modules
from jobs.train.request import AdapterRequest
from slora.formats.peft import LoraAdapter, SparseAdapter
from slora.layers.base_layers import is_conv1d
from slora.layers.install import TRAINABLE_SUFFIXES
from slora.layers.patterns import list_layer_kinds, match_pattern

Factors = Mapping[str, tuple[Tensor, Tensor]]


def assemble_adapter(
    request: AdapterRequest,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    method: MethodRunner,
) -> LoraAdapter | SparseAdapter:
    """Return the adapter of a run of any kind but full.

    A LoRA for stock PEFT, if the update is one; the compact form if there are values (kind sparse,
    and the residual of a hand-off beside the factors) or sparse factors.
    """
    spec = request.spec
    head = {
        name: tensor for name, tensor in weights.items() if not name.endswith(TRAINABLE_SUFFIXES)
    }
    if spec.method.kind == "sparse":
        values = {name: weights[f"{name}.values"] for name in method.shapes}
        return _make_sparse_adapter(request, method, values, {}, head)
    assert method.inits is not None
    inits = method.inits
    # Factors that were subtracted from the weight at the start belong to the update, as negative.
    subtracted = method.subtracted_factors
    factors = {
        name: _join_factors(method.factors[name], subtracted.get(name)) for name in method.factors
    }  # fmt: skip
    residual = {name: init.residual for name, init in inits.items() if init.residual is not None}
    # Gates may leave layers of different ranks, which a LoRA folder for all servers can't have.
    ranks = {a_RI.shape[0] for a_RI, _ in factors.values()}
    if residual or len(ranks) > 1 or _has_sparse_factors(request):
        return _make_sparse_adapter(request, method, residual, factors, head)
    return _make_lora_adapter(request, model, method, factors, head)


def _has_sparse_factors(request: AdapterRequest) -> bool:
    """Return whether the factors are sparse."""
    method = request.spec.method
    return method.factor_density < 1 and method.factor_pruning == "fixed"


def choose_target_names(model: PreTrainedModel, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the shortest names by which PEFT finds these layers and no other module."""
    module_names = [name for name, _ in model.named_modules() if name]
    for candidates in (
        tuple({name.rpartition(".")[2] for name in targets}),
        list_layer_kinds(targets),
    ):
        if {
            name
            for name in module_names
            if any(match_pattern(name, candidate) for candidate in candidates)
        } == set(targets):
            return candidates
    return targets


def _join_factors(
    factors: tuple[Tensor, Tensor], subtracted: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return `B A - B0 A0` as one pair of twice the rank."""
    if subtracted is None:
        return factors
    a_RI, b_OR = factors
    return torch.cat((a_RI, subtracted[0])), torch.cat((b_OR, -subtracted[1]), dim=1)


def _make_sparse_adapter(
    request: AdapterRequest,
    method: MethodRunner,
    values: Mapping[str, Tensor],
    factors: Factors,
    head: Mapping[str, Tensor],
) -> SparseAdapter:
    spec = request.spec
    source = find_base_source(spec.model.path, request.base)
    is_random = bool(values) and spec.method.mask == "random"
    return SparseAdapter(
        values=values,
        masks={name: mask for name, mask in (method.masks or {}).items() if name in values},
        seed=spec.train.seed if is_random else None,
        density=spec.method.density if is_random else None,
        factors=factors,
        scale=spec.method.scale,
        sparse_factors=_has_sparse_factors(request),
        base=source.path,
        revision=source.revision,
        task=spec.model.task,
        head=head,
        labels=request.labels,
    )


def _make_lora_adapter(
    request: AdapterRequest,
    model: PreTrainedModel,
    method: MethodRunner,
    factors: Factors,
    head: Mapping[str, Tensor],
) -> LoraAdapter:
    spec = request.spec
    rank = next(iter(factors.values()))[0].shape[0]
    is_doubled = rank != spec.method.rank
    source = find_base_source(spec.model.path, request.base)
    named_heads = list_head_modules(model) if head else []
    return LoraAdapter(
        factors=factors,
        # Twice the rank, with the same scale.
        alpha=spec.method.scale * rank if is_doubled else spec.method.alpha,
        rank=rank,
        rslora=spec.method.rslora and not is_doubled,
        conv1d=any(is_conv1d(model.get_submodule(name)) for name in factors),
        base=source.path,
        revision=source.revision,
        task=spec.model.task,
        target_modules=choose_target_names(model, tuple(method.shapes)),
        head_modules=tuple(name for name, _ in named_heads),
        head=head,
        labels=request.labels,
    )
