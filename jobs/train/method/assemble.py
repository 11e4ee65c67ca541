"""Assemble an adapter from the trained weights: which form it has, and which names are in it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from jobs.inspect.base_source import find_base_source
from jobs.spec.tasks import PROBLEM_TYPES
from jobs.train.method.runner import MethodRunner
from jobs.train.request import AdapterRequest
from slora.formats.peft import LoraAdapter, SparseAdapter
from slora.formats.peft_targets import name_targets
from slora.layers.factors import get_rank, join_ranks
from slora.layers.install import TRAINABLE_SUFFIXES
from slora.layers.token_rows import SUFFIX

Factors = Mapping[str, tuple[Tensor, Tensor]]


def assemble_adapter(
    request: AdapterRequest,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    method: MethodRunner,
) -> LoraAdapter | SparseAdapter:
    """Return the adapter of a run of any kind but full.

    A LoRA for stock PEFT, if the update is one; the compact form if there are values (kind sparse,
    and the residual of a hand-off beside the factors), or by `method.factor_storage`.
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
    # In the model's order, which the files keep: a resumed run has read its inits by name.
    factors = {
        name: _add_subtracted(method.factors[name], subtracted.get(name)) for name in method.shapes
    }
    residuals = ((name, inits[name].residual) for name in method.shapes)
    residual = {name: values for name, values in residuals if values is not None}
    # Gates may leave layers of different ranks, which a LoRA folder for all servers can't have.
    ranks = {get_rank(pair) for pair in factors.values()}
    if residual or len(ranks) > 1 or spec.method.factor_storage == "compact":
        return _make_sparse_adapter(request, method, residual, factors, head)
    return _make_lora_adapter(request, model, method, factors, head)


def _add_subtracted(
    factors: tuple[Tensor, Tensor], subtracted: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return `B A - B0 A0` as one pair of twice the rank."""
    if subtracted is None:
        return factors
    return join_ranks(factors, (subtracted[0], -subtracted[1]))


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
        masks={name: (method.masks or {})[name] for name in values},
        seed=spec.train.seed if is_random else None,
        density=spec.method.density if is_random else None,
        factors=factors,
        scale=spec.method.scale,
        factor_mask=method.factor_mask if spec.method.factor_storage == "compact" else None,
        base=source.path,
        revision=source.revision,
        task=spec.model.task,
        head=head,
        tokens=method.tokens,
        labels=request.labels,
        problem_type=PROBLEM_TYPES[spec.data.labels],
    )


def _make_lora_adapter(
    request: AdapterRequest,
    model: PreTrainedModel,
    method: MethodRunner,
    factors: Factors,
    head: Mapping[str, Tensor],
) -> LoraAdapter:
    spec = request.spec
    rank = get_rank(next(iter(factors.values())))
    is_doubled = rank != spec.method.rank
    source = find_base_source(spec.model.path, request.base)
    has_head = any(not name.endswith(SUFFIX) for name in head)
    return LoraAdapter(
        factors=factors,
        # Twice the rank, with the same scale.
        alpha=spec.method.scale * rank if is_doubled else spec.method.alpha,
        rank=rank,
        rslora=spec.method.rslora and not is_doubled,
        base=source.path,
        revision=source.revision,
        task=spec.model.task,
        **name_targets(model, factors),
        head_modules=request.plan.head_modules if has_head else (),
        head=head,
        tokens=method.tokens,
        labels=request.labels,
        problem_type=PROBLEM_TYPES[spec.data.labels],
    )
