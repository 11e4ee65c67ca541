"""The packing of a run, settled when its model is loaded: the plan's choice, tried on that model.

The plan tries a small copy in float32. The model itself may have another attention kernel, dtype or
device, so a few short rows are computed once more: alone, packed, and packed beside other rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jobs.errors import InputError
from jobs.plan.packing_choice import (
    PackingChoice,
    PackingMode,
    adapt_to_kernel,
    check_packing,
    choose_by_spec,
    get_probe_kernel,
)
from jobs.spec.schema import RunSpec
from jobs.train.attention.row_attention import use_full_attention, use_row_attention
from jobs.train.comm.collectives import INSTALL, WorkerContext
from jobs.train.data.collate import Batch, Collator
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.data.packing import join_samples
from jobs.train.data.tokenization import Sample
from jobs.train.model.packing_probe import answer_probe, draw_sample

if TYPE_CHECKING:
    from jobs.train.model.base_shards import BaseShards

ROW_LENGTH = 12
ERROR_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.2}
LEAK_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.02}
"""Bounds of the median over the tokens, in standard deviations of the logits. Looser than those of
the small copy: many layers and other kernels round differently, and a rounded router may send a
token to another expert; a kernel that ignores the rows is wrong by one standard deviation."""


def settle_packing(
    spec: RunSpec,
    planned: PackingChoice,
    model: Any,
    context: WorkerContext,
    *,
    shards: BaseShards | None = None,
) -> PackingChoice:
    """Return the packing of a run with this model, the same on every rank, and let the model attend
    by row if it can. A collective.

    Raise InputError if the spec demands packing that is not possible.
    """
    choice = choose_by_spec(spec) or _decide(spec, planned, model)
    is_planned = planned.by_row or choice.by_row
    with context.collectives.attribute_to(INSTALL), _gather(shards):
        by_row = is_planned and _settle_row_attention(model, context)
        # Attention by row is tried on packed rows.
        is_confirmed = by_row or not choice.is_on
        if not is_confirmed:
            is_confirmed = _agree(_is_exact(model, choice.mode, context.device), context)
    if not is_confirmed:
        reason = f"packed rows leak into each other in {type(model).__name__} on this device"
        choice = PackingChoice("off", reason)
    choice = replace(choice, by_row=by_row)
    if faults := list(check_packing(spec, choice)):
        raise InputError(faults)
    return choice


def _settle_row_attention(model: Any, context: WorkerContext) -> bool:
    """Return whether the model attends by row now, which it does if that is exact on all ranks."""
    if not use_row_attention(model):
        return False
    try:
        is_exact = _is_exact(model, "positions", context.device)
    # The kernel of this device refuses a width, a type or a score.
    except (RuntimeError, ValueError):
        is_exact = False
    if _agree(is_exact, context):
        return True
    use_full_attention(model)
    return False


def _gather(shards: BaseShards | None) -> AbstractContextManager[None]:
    return nullcontext() if shards is None else shards.gather_on_demand()


def _decide(spec: RunSpec, planned: PackingChoice, model: Any) -> PackingChoice:
    """Return the plan's choice, or probe a small copy here if the plan could not tell."""
    if planned.mode != "undecided":
        return planned
    kernel = get_probe_kernel(spec)
    options = {"attn_implementation": kernel} if kernel else {}
    answer = answer_probe(model.config, partial(type(model)._from_config, **options))
    choice = adapt_to_kernel(answer.choose(spec.data.max_length), spec)
    if choice.mode == "undecided":
        return PackingChoice("off", f"no small copy of {type(model).__name__} could be tried")
    return choice


def _is_exact(model: Any, mode: PackingMode, device: torch.device) -> bool:
    """Return whether packed rows of the model have the logits of the rows alone."""
    first, second, other = (_draw_row(model, seed) for seed in range(3))
    # Rows of one length need no padding: a batch of them is each of them alone.
    alone = _make_batch("off", [first], [second])
    packed = _make_batch(mode, [first, second], [second, first])
    beside_other = _make_batch(mode, [other, second], [second, other])
    logits, packed_logits, beside_logits = (
        _compute_logits(model, batch, device) for batch in (alone, packed, beside_other)
    )
    error = _measure_median(packed_logits[0].reshape(logits.shape), logits, scale=logits.std())
    leaks = [
        _measure_median(packed_logits[line, part], beside_logits[line, part], scale=logits.std())
        for line, part in ((0, slice(ROW_LENGTH, None)), (1, slice(ROW_LENGTH)))
    ]
    return error <= ERROR_BOUNDS[model.dtype] and max(leaks) <= LEAK_BOUNDS[model.dtype]


def _agree(is_exact: bool, context: WorkerContext) -> bool:
    """Return whether it is exact on all ranks."""
    failures = torch.tensor([0.0 if is_exact else 1.0], device=context.device)
    return not context.collectives.all_reduce(failures, INSTALL).item()


def _draw_row(model: Any, seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return draw_sample(ROW_LENGTH, model.config.get_text_config().vocab_size, generator)


def _make_batch(mode: PackingMode, *lines: list[Sample]) -> Batch:
    sequences = [join_samples(samples) for samples in lines]
    return Collator(0, mode, "tokens", False)(sequences, length=len(sequences[0]))


def _compute_logits(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """Return the logits in float32, [m, L, V]."""
    with torch.no_grad():
        logits: Tensor = model(**make_model_inputs(model, batch, device=device)).logits
    return logits.float()


def _measure_median(actual: Tensor, expected: Tensor, *, scale: Tensor) -> float:
    """Return the median over the tokens of the largest difference, in units of the scale."""
    differences = (actual - expected).abs().amax(-1)
    return float(differences.median() / scale)
