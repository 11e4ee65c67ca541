"""The plan of a run: its stages, targets, batches and sharding, before any worker starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import Fault, InputError
from jobs.plan.checks import (
    check_batch,
    check_cluster,
    check_method,
    check_rank,
    get_min_side,
    get_sizing_rank,
)
from jobs.plan.dtype_choice import FLOAT32, DtypeChoice, get_set_dtype
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.estimate.from_spec import CheckedFacts, estimate_run, has_exact_count
from jobs.plan.estimate.inputs import StageFacts
from jobs.plan.label_order import LabelOrder
from jobs.plan.packing_choice import UNDECIDED, PackingChoice
from jobs.plan.plan_notes import collect_handoff_notes, collect_target_notes
from jobs.plan.rate_choice import SET_RATES, RateChoice
from jobs.plan.stage_rates import get_head_rate, get_stage_rate
from jobs.plan.token_tally import TokenTally, iter_tally_notes
from jobs.spec.schema import RunSpec
from slora.layers.patterns import list_layer_kinds, match_pattern
from slora.layers.shapes import count_factor_entries, get_expert_shape
from slora.masks.sizes import count_mask_entries, count_trained_factors


@dataclass(frozen=True)
class ModelShape:
    """The base as far as the plan needs it: its size, and the linear layers to choose from."""

    parameters: int
    linears: Mapping[str, tuple[int, int]]
    head: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Layers that cannot be targets, with the reason."""
    excluded: tuple[str, ...] = ()
    """A line for each reason."""
    head_modules: tuple[str, ...] = ()
    """Modules that are trained completely."""
    labels: LabelOrder | None = None
    attention: str = ""
    notes: tuple[str, ...] = ()
    """What the user should know of the model."""


@dataclass(frozen=True)
class StagePlan:
    """The length, the learning rate and the trained parameters of a stage."""

    name: str
    """sparse | low-rank | full"""
    steps: int | None
    """None with epochs: only the tokenized rows give the steps."""
    trainable: int
    """Parameters of the adapter, without the head."""
    learning_rate: float
    head_learning_rate: float | None = None
    """None if the run trains no head."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run; `complete_plan` completes it when the model is loaded."""

    name: str
    kind: str
    model_parameters: int
    """Parameters of the base and its head."""
    targets: tuple[str, ...]
    target_weights: int
    head: int
    stages: tuple[StagePlan, ...]
    sharding: str
    sharding_reason: str
    workers: int
    batch_size: int
    per_worker: int
    micro_batch_size: int
    accumulation: int
    dtype: DtypeChoice = FLOAT32
    rates: RateChoice = SET_RATES
    """Where the learning rates of the stages come from."""
    packing: PackingChoice = UNDECIDED
    notes: tuple[str, ...] = ()
    """Warnings for the user, e.g. that the hand-off is not exact, and why."""
    estimate: RunEstimate | None = None
    """Memory, traffic, time and cost; None if the base's files were not read."""
    tallies: Mapping[str, TokenTally] = field(default_factory=dict)
    """The tokens of data.train and data.eval, once the rows are tokenised."""
    head_modules: tuple[str, ...] = ()
    """The head: modules that the task adds to the base, or that only it uses."""
    labels: tuple[str, ...] = ()
    """A classifier's labels in the order of their numbers; empty for a language model."""
    new_head: bool = False
    """The head is drawn anew, although the base's files have one."""
    attention: str = ""
    """The attention implementation that transformers chooses for the model."""

    def compute_share(self, stage: StagePlan) -> float:
        """Return the share of the model's parameters that a stage trains, including the head."""
        return (stage.trainable + self.head) / self.model_parameters

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, with the shares of its stages."""
        document = dataclasses.asdict(self)
        for stage, values in zip(self.stages, document["stages"], strict=True):
            values["share"] = self.compute_share(stage)
        document["estimate"] = self.estimate.to_json() if self.estimate else None
        return document


def make_plan(
    spec: RunSpec,
    shape: ModelShape,
    *,
    facts: CheckedFacts | None = None,
    estimate: RunEstimate | None = None,
) -> tuple[Plan | None, list[Fault]]:
    """Return the plan, or the faults of the batch, the targets, the rank and the memory.

    `facts` are needed for an estimate; an `estimate` from an earlier plan is reused.
    """
    faults = check_batch(spec)
    targets, extra_faults = _select_targets(spec, shape)
    faults += extra_faults
    faults += check_rank(spec, targets)
    faults += check_method(spec)
    faults += check_cluster(spec)
    if faults:
        return None, faults
    workers = spec.workers
    per_worker, micro, accumulation = split_batch(
        spec.train.batch_size, spec.train.micro_batch_size, workers
    )
    stages = _plan_stages(spec, shape, targets)
    if facts is not None:
        estimate = _estimate_run(
            spec, facts, targets, stages, micro=micro, accumulation=accumulation
        )
        if estimate.fault:
            return None, [_refuse_memory(estimate, spec)]
    sharding, reason = _select_sharding(spec, estimate)
    return Plan(
        name=spec.name,
        kind=spec.method.kind,
        model_parameters=shape.parameters + shape.head,
        targets=tuple(targets),
        target_weights=sum(rows * columns for rows, columns in targets.values()),
        head=shape.head if spec.method.kind != "full" else 0,
        stages=stages,
        sharding=sharding,
        sharding_reason=reason,
        workers=workers,
        batch_size=spec.train.batch_size,
        per_worker=per_worker,
        micro_batch_size=micro,
        accumulation=accumulation,
        notes=(
            *shape.notes,
            *collect_target_notes(spec, shape.linears, targets, shape.excluded),
            *collect_handoff_notes(spec, targets),
            *(estimate.warnings if estimate else ()),
        ),
        dtype=DtypeChoice(get_set_dtype(spec)),
        estimate=estimate,
        head_modules=shape.head_modules,
        labels=shape.labels.labels if shape.labels else (),
        new_head=shape.labels is not None and shape.labels.new_head,
        attention=shape.attention,
    ), []


@dataclass(frozen=True)
class MeasuredFacts:
    """Figures of the loaded model and the tokenized rows, which complete a plan."""

    model: ModelShape
    sequences: int | None = None
    """Sequences of an epoch; None if the spec gives the steps."""


def complete_plan(plan: Plan, spec: RunSpec, facts: MeasuredFacts) -> Plan:
    """Return the plan with the figures of the loaded model, and with the steps of its epochs.

    A plan that fits the loaded model is kept; otherwise it is made again with the same estimate.
    Raise InputError if the loaded model does not allow the plan.
    """
    if not _is_planned_for(plan, spec, facts.model):
        measured, faults = make_plan(spec, facts.model, estimate=plan.estimate)
        if measured is None:
            raise InputError(faults)
        plan = dataclasses.replace(
            measured,
            # Those of the files tell more than the loaded targets do.
            notes=plan.notes,
            tallies=plan.tallies,
            dtype=plan.dtype,
            rates=plan.rates,
            packing=plan.packing,
            head_modules=plan.head_modules,
            labels=plan.labels,
            new_head=plan.new_head,
            attention=plan.attention,
        )
    if spec.train.epochs is None or facts.sequences is None:
        return plan
    steps = count_steps(facts.sequences, spec.train.epochs, spec.train.batch_size)
    parts = zip(plan.stages, split_steps(spec, steps), strict=True)
    stages = tuple(dataclasses.replace(stage, steps=count) for stage, count in parts)
    return dataclasses.replace(plan, stages=stages)


def add_tallies(plan: Plan, tallies: Mapping[str, TokenTally]) -> Plan:
    """Return the plan with the tallies of the tokenised rows, and their notes."""
    notes = tuple(note for key, tally in tallies.items() for note in iter_tally_notes(tally, key))
    return dataclasses.replace(plan, tallies=dict(tallies), notes=(*plan.notes, *notes))


def _is_planned_for(plan: Plan, spec: RunSpec, model: ModelShape) -> bool:
    """Return whether the loaded model has the figures that the plan got from its files."""
    targets, faults = _select_targets(spec, model)
    trainable = [stage.trainable for stage in _plan_stages(spec, model, targets)]
    return (
        not faults
        and plan.model_parameters == model.parameters + model.head
        and plan.head == (model.head if spec.method.kind != "full" else 0)
        and plan.targets == tuple(targets)
        and [stage.trainable for stage in plan.stages] == trainable
    )


def split_steps(spec: RunSpec, steps: int) -> tuple[int, ...]:
    """Split the steps over the stages: by sparse_share for slora; other kinds have one stage."""
    if spec.method.kind != "slora":
        return (steps,)
    sparse = round(steps * spec.method.sparse_share)
    return sparse, steps - sparse


def _plan_stages(
    spec: RunSpec, shape: ModelShape, targets: Mapping[str, tuple[int, int]]
) -> tuple[StagePlan, ...]:
    method, train = spec.method, spec.train
    sparse = sum(_count_mask_entries(spec, size) for size in targets.values())
    low_rank = sum(_count_factor_entries(spec, size) for size in targets.values())
    stages_by_kind = {
        "sparse": (("sparse", sparse),),
        "lora": (("low-rank", low_rank),),
        "full": (("full", shape.parameters + shape.head),),
        "slora": (("sparse", sparse), ("low-rank", low_rank)),
    }[method.kind]
    steps = split_steps(spec, train.steps) if train.steps else (None,) * len(stages_by_kind)
    return tuple(
        StagePlan(
            name=name,
            steps=count,
            trainable=trainable,
            learning_rate=get_stage_rate(train, name),
            head_learning_rate=get_head_rate(train, name) if shape.head_modules else None,
        )
        for (name, trainable), count in zip(stages_by_kind, steps, strict=True)
    )


def _count_mask_entries(spec: RunSpec, size: tuple[int, int]) -> int:
    method = spec.method
    return count_mask_entries(method.mask, size, density=method.density, rank=get_sizing_rank(spec))


def _count_factor_entries(spec: RunSpec, size: tuple[int, int]) -> int:
    """Count the entries at the start of a low-rank stage: gates prune later."""
    method = spec.method
    dense = count_factor_entries(size, method.rank)
    if method.factor_density == 1:
        return dense
    if method.factor_pruning == "gates":
        return dense + method.rank
    kind, density = method.factor_mask, method.factor_density
    return sum(count_trained_factors(kind, size, rank=method.rank, density=density))


def _select_sharding(spec: RunSpec, estimate: RunEstimate | None) -> tuple[str, str]:
    if estimate is not None:
        return estimate.sharding, estimate.reason
    if (sharding := spec.cluster.sharding) != "auto":
        return sharding, "set in the spec"
    return "replicate", "auto: the default, because the memory was not estimated"


def _estimate_run(
    spec: RunSpec,
    facts: CheckedFacts,
    targets: Mapping[str, tuple[int, int]],
    stages: tuple[StagePlan, ...],
    *,
    micro: int,
    accumulation: int,
) -> RunEstimate:
    head = facts.head if spec.method.kind != "full" else 0
    sparse = spec.method.kind in ("slora", "sparse")
    return estimate_run(
        spec,
        facts,
        targets=targets,
        entries={name: _count_mask_entries(spec, size) for name, size in targets.items() if sparse},
        stages=tuple(
            StageFacts(
                stage.name,
                stage.steps,
                stage.trainable + head,
                exact=stage.name != "sparse" or has_exact_count(spec.method),
            )
            for stage in stages
        ),
        micro=micro,
        accumulation=accumulation,
    )


def _refuse_memory(estimate: RunEstimate, spec: RunSpec) -> Fault:
    remedy = (
        "Use more workers or larger ones (cluster.machine.memory_gb), a smaller "
        "train.micro_batch_size or data.max_length, or model.dtype: bfloat16."
    )
    if not spec.train.activation_checkpointing:
        remedy = f"Set train.activation_checkpointing: true. {remedy}"
    assert estimate.fault
    return Fault("cluster.sharding", estimate.fault, remedy)


def split_batch(batch_size: int, micro_batch_size: int, workers: int) -> tuple[int, int, int]:
    """Return the sequences per worker and per micro-batch, and the number of micro-batches.

    If they do not divide the batch, the last workers get less, padded with empty sequences.
    """
    per_worker = -(-batch_size // workers)
    micro = min(micro_batch_size, per_worker)
    return per_worker, micro, -(-per_worker // micro)


def _select_targets(
    spec: RunSpec, shape: ModelShape
) -> tuple[dict[str, tuple[int, int]], list[Fault]]:
    if spec.method.kind == "full":
        return {}, []
    linears = dict(shape.linears)
    if not linears:
        return {}, [Fault("model.path", "the model has no linear layer", "Use a transformer.")]
    patterns = spec.method.targets
    if patterns == "all-linear":
        side = get_min_side(spec.method)
        fitting = {n: s for n, s in linears.items() if min(get_expert_shape(s)) >= side}
        # If none fits, the check of the rank names the smallest.
        return fitting or linears, []
    faults = [
        _refuse_pattern(f"method.targets[{index}]", pattern, shape)
        for index, pattern in enumerate(patterns)
        if not any(match_pattern(name, pattern) for name in linears)
    ]
    chosen = {n: s for n, s in linears.items() if any(match_pattern(n, p) for p in patterns)}
    return chosen, faults


def _refuse_pattern(key: str, pattern: str, shape: ModelShape) -> Fault:
    remedy = f"Available: {', '.join(list_layer_kinds(shape.linears))}."
    matched = [name for name in shape.left_out if match_pattern(name, pattern)]
    if not matched:
        return Fault(key, f"{pattern!r} matches no linear layer", remedy)
    problem = f"{pattern!r} matches {matched[0]}, which is not adapted"
    return Fault(key, f"{problem} ({shape.left_out[matched[0]]})", remedy)


def count_steps(sequences: int, epochs: int, batch_size: int) -> int:
    """Count the optimizer steps of some epochs; the last one may have a smaller batch."""
    return math.ceil(sequences * epochs / batch_size)
