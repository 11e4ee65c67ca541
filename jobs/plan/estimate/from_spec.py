"""The estimate of a run from its spec and facts about its model and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.plan.estimate.base_tensors import BaseFacts
from jobs.plan.estimate.estimate import RunEstimate, make_estimate
from jobs.plan.estimate.inputs import (
    Batching,
    EstimateInput,
    LocalStepFacts,
    MethodFacts,
    StageFacts,
)
from jobs.plan.estimate.machine import describe_resources
from jobs.plan.estimate.output_files import estimate_adapter
from jobs.plan.estimate.speed import Speed
from jobs.spec.schema import MethodSection, RunSpec
from slora.masks.sizes import STRUCTURES

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
DATA_FREE_SCORES = ("random", "magnitude")
"""Scores that need no calibration batch."""
NARROW_MASKS = ("columns", "blocks")
"""Masks whose layers keep only a few columns of their input for the backward."""
Targets = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class CheckedFacts:
    """Facts from the validation that an estimate needs beside the spec."""

    base: BaseFacts
    head: int
    eval_rows: int | None = None
    """Held-out rows, if they have been counted."""
    speed: Speed | None = None
    holds_masks: bool = False
    """Attention holds masks of L x L."""
    keeps_logits: bool = False
    """The loss of tokens is not computed in chunks."""
    local_memory: int | None = None
    """Memory of this machine in bytes; by default it is read."""


def estimate_run(
    spec: RunSpec,
    facts: CheckedFacts,
    *,
    targets: Targets,
    entries: Mapping[str, int],
    stages: tuple[StageFacts, ...],
    micro: int,
    accumulation: int,
) -> RunEstimate:
    """Estimate the run of a spec. `entries` are the entries of the masks, by target."""
    inputs = EstimateInput(
        base=facts.base,
        method=_describe_method(spec.method, targets, entries, head=facts.head),
        stages=stages,
        resources=describe_resources(spec, local_memory=facts.local_memory),
        batching=_describe_batching(spec, facts.eval_rows, micro, accumulation),
        dtype_bytes=DTYPE_BYTES[spec.model.dtype],
        exchange_bytes=DTYPE_BYTES[spec.cluster.exchange_dtype],
        local=LocalStepFacts(
            sync_every=spec.cluster.sync_every,
            momentum=spec.cluster.outer == "nesterov",
            averages_products=spec.cluster.average == "product",
        ),
        classifies=spec.model.task == "sequence-classification",
        holds_masks=facts.holds_masks,
        keeps_logits=facts.keeps_logits,
    )
    adapter = estimate_adapter(
        spec.method,
        targets,
        entries,
        head=facts.head,
        model_bytes=(facts.base.parameters + facts.head) * inputs.dtype_bytes,
    )
    return make_estimate(inputs, spec.cluster.sharding, adapter=adapter, speed=facts.speed)


def has_exact_count(method: MethodSection) -> bool:
    """Return whether the number of mask entries is known before the scores are."""
    return method.allocation == "uniform" or method.mask not in STRUCTURES


def _describe_method(
    method: MethodSection, targets: Targets, entries: Mapping[str, int], *, head: int
) -> MethodFacts:
    score = method.score if method.mask in STRUCTURES else method.mask
    scored = bool(entries) and score not in DATA_FREE_SCORES
    has_init = method.kind == "lora" and method.init != "zero"
    return MethodFacts(
        kind=method.kind,
        targets=targets,
        mask_entries=entries,
        rank=method.rank,
        keeps_inputs=method.mask not in NARROW_MASKS,
        keeps_residual=method.handoff.residual != "drop",
        scored=scored or (has_init and method.init == "lora-ga"),
        broadcast_starts=has_init,
        sketch_norm=method.handoff.norm if method.kind == "slora" else "weights",
        calibration_batches=method.calibration_batches,
        uses_kernels=bool(entries) and method.mask not in STRUCTURES,
        masks_factors=method.has_factor_masks,
        head=head,
    )


def _describe_batching(
    spec: RunSpec, eval_rows: int | None, micro: int, accumulation: int
) -> Batching:
    train, workers = spec.train, spec.workers
    return Batching(
        sequences=train.batch_size,
        micro=micro,
        accumulation=accumulation,
        length=spec.data.max_length,
        evaluates=spec.data.eval is not None or spec.data.eval_fraction is not None,
        eval_micros=None if eval_rows is None else -(-eval_rows // (micro * workers)),
        eval_every=train.eval_every,
        recomputes=train.activation_checkpointing,
        checkpoint_every=train.checkpoint_every,
    )
