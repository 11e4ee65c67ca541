"""The plan: what a run trains, where and how often, before anything is asked for. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.estimate.from_spec import CheckedFacts, estimate_run, has_exact_count
from jobs.plan.estimate.inputs import StageFacts
from jobs.spec.schema import RunSpec
from slora.layers.patterns import count_entries, list_layer_kinds, match_pattern
from slora.masks.sizes import STRUCTURES, compute_exact_rank, count_mask_entries


@dataclass(frozen=True)
class ModelShape:
    """The base as the plan sees it: its size, and the linear layers that may be targets."""

    parameters: int
    linears: Mapping[str, tuple[int, int]]
    head: int
    experts: tuple[str, ...] = ()
    """Weights of fused experts, which are no layers that can be targets."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: how long, how fast, and how much is trained in it."""

    name: str
    """sparse | low-rank | full"""
    steps: int | None
    """None where only the rows, counted in tokens, can tell (epochs)."""
    trainable: int
    """Parameters of the adapter, without the head."""
    learning_rate: float


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    name: str
    kind: str
    model_parameters: int
    """Of the base with its head."""
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
    """What the user should know before: that the hand-off is not exact, and why."""
    estimate: RunEstimate | None = None
    """What the run will hold, send, take and cost; None where the base's files were not read."""

    def compute_share(self, stage: StagePlan) -> float:
        """Share of the model's parameters that a stage trains, the head counted."""
        return (stage.trainable + self.head) / self.model_parameters

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, shares included: what a run records."""
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
    """The plan, or what in the spec can't be: the batch, the targets, the rank, the memory.

    With an `outlook` it predicts; a `prediction` that was made before is kept as it is.
    """
    faults = check_batch(spec)
    targets, extra_faults = _select_targets(spec, shape)
    faults += extra_faults
    faults += _check_rank(spec, targets)
    faults += _check_method(spec)
    faults += _check_cluster(spec)
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


def split_steps(spec: RunSpec, steps: int) -> tuple[int, ...]:
    """The steps of each stage: slora splits them by sparse_share, the others have one stage."""
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
    """The rank that rows, columns and blocks are sized by; None where the density sizes them."""
    # Without a hand-off there is no rank that a mask could lose by.
    method = spec.method
    return method.rank if method.kind == "slora" and method.sizing == "rank" else None


def _count_factor_entries(spec: RunSpec, size: tuple[int, int]) -> int:
    """What a low-rank stage starts with: gates only prune later."""
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
        return ["the hand-off is not exact: the masks of A and B drop part of what the rank holds"]
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
        return [f"the hand-off at rank {method.rank} is exact: no update has more"]
    if method.handoff.residual == "fold":
        return ["the hand-off loses nothing: what the rank does not hold is folded into the base"]
    worst = max(lossy, key=lambda name: exact_ranks[name])
    return [
        f"the hand-off at rank {method.rank} is not exact: a {method.mask} mask can have rank "
        f"{exact_ranks[worst]} in {worst}, and in {len(lossy)} of {len(targets)} layers more than the "
        "spec's. Masks of rows, columns or blocks with sizing: rank are exact"
    ]


def _check_method(spec: RunSpec) -> list[Fault]:
    """Wishes of the method that exclude each other."""
    method, faults = spec.method, list[Fault]()
    sparse, low_rank = method.kind in ("slora", "sparse"), method.kind in ("slora", "lora")
    score = method.score if method.mask in STRUCTURES else method.mask
    if sparse and method.allocation == "global" and (score == "random" or method.mask == "blocks"):
        subject = "blocks" if method.mask == "blocks" else "random masks"
        remedy = "Use allocation: uniform, or another mask."
        faults.append(Fault("method.allocation", f"{subject} can't compete over layers", remedy))
    if method.init != "zero" and (method.kind != "lora"):
        problem = f"{method.init} is a start of its own, and kind {method.kind} has another"
        faults.append(Fault("method.init", problem, "Use kind: lora, or init: zero."))
    if method.factor_density < 1 and not low_rank:
        problem = f"kind {method.kind} has no factors"
        faults.append(Fault("method.factor_density", problem, "Leave it at 1.0."))
    return faults


def _check_cluster(spec: RunSpec) -> list[Fault]:
    """Wishes of the cluster that can't be, or that would have no effect."""
    cluster, faults, full = spec.cluster, list[Fault](), spec.method.kind == "full"
    if full and cluster.sync_every > 1:
        problem = "kind full exchanges every step: its optimiser is cut over the workers"
        faults.append(Fault("cluster.sync_every", problem, "Use 1, or another method.kind."))
    if full and cluster.exchange_dtype != "float32":
        problem = "kind full exchanges in the type of the model"
        faults.append(Fault("cluster.exchange_dtype", problem, "Leave it at float32."))
    for key, default in (("outer", "average"), ("average", "factors")):
        if cluster.sync_every == 1 and (value := getattr(cluster, key)) != default:
            problem = f"{value} is of steps that workers take alone, and sync_every is 1"
            faults.append(Fault(f"cluster.{key}", problem, "Use a sync_every above 1."))
    if not isinstance(cluster.workers, int) and cluster.workers.min > cluster.workers.max:
        problem = f"min {cluster.workers.min} is above max {cluster.workers.max}"
        faults.append(Fault("cluster.workers", problem, "Swap them."))
    return faults


def _select_sharding(spec: RunSpec, estimate: RunEstimate | None) -> tuple[str, str]:
    if estimate is not None:
        return estimate.sharding, estimate.reason
    if (sharding := spec.cluster.sharding) != "auto":
        return sharding, "as the spec says"
    return "replicate", "auto: the first choice; memory was not predicted"


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


def check_batch(spec: RunSpec) -> list[Fault]:
    """What of the batch can't be dealt to the workers; needs no model."""
    if not isinstance(spec.cluster.workers, int):
        # An elastic run can't choose how many it gets: the rest of a batch is filled up.
        return []
    batch, workers, micro = spec.train.batch_size, spec.workers, spec.train.micro_batch_size
    if batch % workers:
        nearest = max(workers, round(batch / workers) * workers)
        problem = f"{batch} sequences can't be divided by {workers} workers"
        return [Fault("train.batch_size", problem, f"Use a multiple of {workers}, e.g. {nearest}.")]
    per_worker = batch // workers
    if per_worker > micro and per_worker % micro:
        problem = f"{per_worker} sequences a worker can't be cut into micro-batches of {micro}"
        divisor = max(n for n in range(1, micro + 1) if per_worker % n == 0)
        return [Fault("train.micro_batch_size", problem, f"Use a divisor, e.g. {divisor}.")]
    return []


def split_batch(batch_size: int, micro_batch_size: int, workers: int) -> tuple[int, int, int]:
    """Sequences a worker, in a micro-batch, and micro-batches, for any number of workers.

    Where they don't divide the batch, the last of them get less, filled up with nothing.
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
        return {}, [Fault("model.path", "no linear layer was found in it", "Use a transformer.")]
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
            f"There is: {', '.join(list_layer_kinds(linears))}.",
        )
        for index, pattern in enumerate(patterns)
        if not any(match_pattern(name, pattern) for name in linears)
    ]
    chosen = {n: s for n, s in linears.items() if any(match_pattern(n, p) for p in patterns)}
    return chosen, faults


def _refuse_experts(name: str) -> Fault:
    problem = f"{name} belongs to experts that are fused into one tensor and can't be adapted"
    return Fault("method.targets", problem, "Name the linear layers, e.g. [q_proj, v_proj].")


def _check_rank(spec: RunSpec, targets: Mapping[str, tuple[int, int]]) -> list[Fault]:
    if spec.method.kind not in ("slora", "lora") or not targets:
        return []
    name, shape = min(targets.items(), key=lambda item: min(item[1]))
    # LoRA-GA takes as many singular vectors again.
    doubled = spec.method.init == "lora-ga"
    maximum = min(shape) // 2 if doubled else min(shape)
    if spec.method.rank <= maximum:
        return []
    subject = "half the smallest target" if doubled else "the smallest target"
    problem = f"{spec.method.rank} is above {subject}, {name} of {shape[0]} x {shape[1]}"
    return [Fault("method.rank", problem, f"Use 1 to {maximum}, or other method.targets.")]


def count_steps(sequences: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps in which every sequence is seen `epochs` times; the last may be short."""
    return math.ceil(sequences * epochs / batch_size)
