"""From what a run has trained to the adapter that it leaves: which form, and which names in it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.adaptation import Adaptation
from jobs.base_model import named_head
from jobs.request import Request
from slora.adapt import TRAINED
from slora.folder import LoraAdapter, SparseAdapter
from slora.names import kinds, matches
from slora.plain import is_conv1d

Factors = Mapping[str, tuple[Tensor, Tensor]]


def assemble(
    request: Request, model: PreTrainedModel, weights: Mapping[str, Tensor], method: Adaptation
) -> LoraAdapter | SparseAdapter:
    """The adapter of a run of any kind but full.

    A LoRA, as stock PEFT reads it, wherever the update is one; the compact form where there are
    values (kind sparse, and what a hand-off left beside the factors) or sparse factors.
    """
    spec = request.spec
    head = {name: tensor for name, tensor in weights.items() if not name.endswith(TRAINED)}
    if spec.method.kind == "sparse":
        values = {name: weights[f"{name}.values"] for name in method.shapes}
        return _compact(request, method, values, {}, head)
    assert method.starts is not None
    starts = method.starts
    # What was taken out of the weight when the stage began belongs to the update, as its negative.
    minus = method.taken_out
    factors = {
        name: _joined(method.factors[name], minus.get(name)) for name in method.factors
    }  # fmt: skip
    residual = {name: s.residual for name, s in starts.items() if s.residual is not None}
    # Gates may leave layers of different ranks, which a LoRA folder for all servers can't have.
    ranks = {a_RI.shape[0] for a_RI, _ in factors.values()}
    if residual or len(ranks) > 1 or _thinned(request):
        return _compact(request, method, residual, factors, head)
    return _lora(request, model, method, factors, head)


def _thinned(request: Request) -> bool:
    """Whether the factors have zeros of their own."""
    method = request.spec.method
    return method.factor_density < 1 and method.factor_pruning == "fixed"


def target_names(model: PreTrainedModel, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest names by which PEFT finds these layers and no other module."""
    every = [name for name, _ in model.named_modules() if name]
    for short in (tuple({name.rpartition(".")[2] for name in targets}), kinds(targets)):
        if {name for name in every if any(matches(name, one) for one in short)} == set(targets):
            return short
    return targets


def _joined(
    factors: tuple[Tensor, Tensor], minus: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`B A - B0 A0` as one pair of twice the rank."""
    if minus is None:
        return factors
    a_RI, b_OR = factors
    return torch.cat((a_RI, minus[0])), torch.cat((b_OR, -minus[1]), dim=1)


def _compact(
    request: Request,
    method: Adaptation,
    values: Mapping[str, Tensor],
    factors: Factors,
    head: Mapping[str, Tensor],
) -> SparseAdapter:
    spec = request.spec
    random = bool(values) and spec.method.mask == "random"
    return SparseAdapter(
        values=values,
        masks={name: mask for name, mask in (method.masks or {}).items() if name in values},
        seed=spec.train.seed if random else None,
        density=spec.method.density if random else None,
        factors=factors,
        scale=spec.method.scale,
        sparse_factors=_thinned(request),
        base=str(request.base),
        task=spec.model.task,
        head=head,
        labels=request.labels,
    )


def _lora(
    request: Request,
    model: PreTrainedModel,
    method: Adaptation,
    factors: Factors,
    head: Mapping[str, Tensor],
) -> LoraAdapter:
    spec = request.spec
    rank = next(iter(factors.values()))[0].shape[0]
    doubled = rank != spec.method.rank
    heads = named_head(model) if head else []
    return LoraAdapter(
        factors=factors,
        # Of twice the rank, with the same scale.
        alpha=spec.method.scale * rank if doubled else spec.method.alpha,
        rank=rank,
        rslora=spec.method.rslora and not doubled,
        conv1d=any(is_conv1d(model.get_submodule(name)) for name in factors),
        base=str(request.base),
        task=spec.model.task,
        target_modules=target_names(model, tuple(method.shapes)),
        head_modules=tuple(name for name, _ in heads),
        head=head,
        labels=request.labels,
    )
