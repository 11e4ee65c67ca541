"""The plan of a run: its stages, targets, batches and sharding, before any worker starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault, InputError
from jobs.plan.checks import check_batch, check_cluster, check_method, check_rank
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.estimate.from_spec import CheckedFacts, estimate_run, has_exact_count
from jobs.plan.estimate.inputs import StageFacts
from jobs.spec.schema import RunSpec
from slora.layers.patterns import count_entries, list_layer_kinds, match_pattern
from slora.masks.sizes import compute_exact_rank, count_mask_entries


@dataclass(frozen=True)
class ModelShape:
    """The base as far as the plan needs it: its size, and the linear layers to choose from."""

    parameters: int
    linears: Mapping[str, tuple[int, int]]
    head: int
    experts: tuple[str, ...] = ()
    """Weights of fused experts, which cannot be targets."""


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
    notes: tuple[str, ...] = ()
    """Warnings for the user, e.g. that the hand-off is not exact, and why."""
    estimate: RunEstimate | None = None
    """Memory, traffic, time and cost; None if the base's files were not read."""

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
            return None, [_refuse_memory(estimate)]
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
        notes=(*_collect_notes(spec, targets), *(estimate.warnings if estimate else ())),
        estimate=estimate,
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
        plan = measured
    if spec.train.epochs is None or facts.sequences is None:
        return plan
    steps = count_steps(facts.sequences, spec.train.epochs, spec.train.batch_size)
    parts = zip(plan.stages, split_steps(spec, steps), strict=True)
    stages = tuple(dataclasses.replace(stage, steps=count) for stage, count in parts)
    return dataclasses.replace(plan, stages=stages)


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
    sparse_rate = train.sparse_learning_rate or train.learning_rate
    stages_by_kind = {
        "sparse": (("sparse", sparse, sparse_rate),),
        "lora": (("low-rank", low_rank, train.learning_rate),),
        "full": (("full", shape.parameters + shape.head, train.learning_rate),),
        "slora": (
            ("sparse", sparse, sparse_rate),
            ("low-rank", low_rank, train.learning_rate),
        ),
    }[method.kind]
    steps = split_steps(spec, train.steps) if train.steps else (None,) * len(stages_by_kind)
    return tuple(
        StagePlan(name=name, steps=count, trainable=trainable, learning_rate=rate)
        for (name, trainable, rate), count in zip(stages_by_kind, steps, strict=True)
    )


def _count_mask_entries(spec: RunSpec, size: tuple[int, int]) -> int:
    method = spec.method
    return count_mask_entries(method.mask, size, density=method.density, rank=get_sizing_rank(spec))


def get_sizing_rank(spec: RunSpec) -> int | None:
    """Return the rank that sizes rows, columns and blocks, or None if the density does."""
    # Without a hand-off there is no rank that a mask could exceed.
    method = spec.method
    return method.rank if method.kind == "slora" and method.sizing == "rank" else None


def _count_factor_entries(spec: RunSpec, size: tuple[int, int]) -> int:
    """Count the entries at the start of a low-rank stage: gates prune later."""
    method, (rows, columns) = spec.method, size
    dense = method.rank * (rows + columns)
    if method.factor_density == 1:
        return dense
    if method.factor_pruning == "gates":
        return dense + method.rank
    a, b = (method.rank, columns), (rows, method.rank)
    return count_entries(a, method.factor_density) + count_entries(b, method.factor_density)


def _collect_notes(spec: RunSpec, targets: Mapping[str, tuple[int, int]]) -> list[str]:
    method, rank = spec.method, get_sizing_rank(spec)
    if method.kind != "slora":
        return []
    if method.factor_density < 1 and method.factor_pruning == "fixed":
        return ["the hand-off is not exact: the masks of A and B drop part of the low-rank update"]
    # Rows and columns that compete without a limit may all fall to one layer.
    unbounded = method.allocation == "global" and method.sizing == "density"
    exact_ranks = {
        name: min(size)
        if unbounded
        else compute_exact_rank(method.mask, size, density=method.density, rank=rank)
        for name, size in targets.items()
    }
    lossy = [name for name, exact in exact_ranks.items() if exact > method.rank]
    if not lossy:
        return [f"the hand-off at rank {method.rank} is exact: no update has a higher rank"]
    if method.handoff.residual == "fold":
        return ["the hand-off loses nothing: the part above the rank is folded into the base"]
    worst = max(lossy, key=lambda name: exact_ranks[name])
    return [
        f"the hand-off at rank {method.rank} is not exact: the update under a {method.mask} mask "
        f"can have rank {exact_ranks[worst]} in {worst}, and exceeds the rank in {len(lossy)} of "
        f"{len(targets)} layers. Masks of rows, columns or blocks with sizing: rank are exact"
    ]


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


def _refuse_memory(estimate: RunEstimate) -> Fault:
    remedy = (
        "Use more workers or larger ones (cluster.machine.memory_gb), a smaller "
        "train.micro_batch_size or data.max_length, or model.dtype: bfloat16."
    )
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
        return linears, [_refuse_experts(shape.experts[0])] if shape.experts else []
    faults = [
        _refuse_experts(experts[0])
        if (
            experts := [
                n for n in shape.experts if match_pattern(n.removesuffix(".weight"), pattern)
            ]
        )
        else Fault(
            f"method.targets[{index}]",
            f"{pattern!r} matches no linear layer",
            f"Available: {', '.join(list_layer_kinds(linears))}.",
        )
        for index, pattern in enumerate(patterns)
        if not any(match_pattern(name, pattern) for name in linears)
    ]
    chosen = {n: s for n, s in linears.items() if any(match_pattern(n, p) for p in patterns)}
    return chosen, faults


def _refuse_experts(name: str) -> Fault:
    problem = f"{name} belongs to fused experts, which cannot be adapted"
    return Fault("method.targets", problem, "List the linear layers, e.g. [q_proj, v_proj].")


def count_steps(sequences: int, epochs: int, batch_size: int) -> int:
    """Count the optimizer steps of some epochs; the last one may have a smaller batch."""
    return math.ceil(sequences * epochs / batch_size)
