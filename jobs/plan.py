"""The plan: what a run trains, where and how often, before anything is asked for. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault
from jobs.predict.from_spec import Outlook, counted_exactly, foresee
from jobs.predict.prediction import Prediction
from jobs.predict.question import Stage
from jobs.spec import Spec
from slora.names import entries, kinds, matches
from slora.sizes import STRUCTURES, exact_rank, mask_entries


@dataclass(frozen=True)
class Shape:
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
    prediction: Prediction | None = None
    """What the run will hold, send, take and cost; None where the base's files were not read."""

    def share(self, stage: StagePlan) -> float:
        """Share of the model's parameters that a stage trains, the head counted."""
        return (stage.trainable + self.head) / self.model_parameters

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, shares included: what a run records."""
        plain = dataclasses.asdict(self)
        for stage, values in zip(self.stages, plain["stages"], strict=True):
            values["share"] = self.share(stage)
        plain["prediction"] = self.prediction.to_json() if self.prediction else None
        return plain


def make_plan(
    spec: Spec,
    shape: Shape,
    *,
    outlook: Outlook | None = None,
    prediction: Prediction | None = None,
) -> tuple[Plan | None, list[Fault]]:
    """The plan, or what in the spec can't be: the batch, the targets, the rank, the memory.

    With an `outlook` it predicts; a `prediction` that was made before is kept as it is.
    """
    faults = batch_faults(spec)
    targets, more = _targets(spec, shape)
    faults += more
    faults += _rank_faults(spec, targets)
    faults += _method_faults(spec)
    faults += _cluster_faults(spec)
    if faults:
        return None, faults
    workers = spec.workers
    per_worker, micro, accumulation = deal(
        spec.train.batch_size, spec.train.micro_batch_size, workers
    )
    stages = _stages(spec, shape, targets)
    if outlook is not None:
        prediction = _predicted(
            spec, outlook, targets, stages, micro=micro, accumulation=accumulation
        )
        if prediction.fault:
            return None, [_memory_fault(prediction)]
    sharding, reason = _sharding(spec, prediction)
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
        notes=(*_notes(spec, targets), *(prediction.warnings if prediction else ())),
        prediction=prediction,
    ), []


def split_steps(spec: Spec, steps: int) -> tuple[int, ...]:
    """The steps of each stage: slora splits them by sparse_share, the others have one stage."""
    if spec.method.kind != "slora":
        return (steps,)
    sparse = round(steps * spec.method.sparse_share)
    return sparse, steps - sparse


def _stages(
    spec: Spec, shape: Shape, targets: Mapping[str, tuple[int, int]]
) -> tuple[StagePlan, ...]:
    method, train = spec.method, spec.train
    sparse = sum(_mask_entries(spec, size) for size in targets.values())
    low_rank = sum(_low_rank_entries(spec, size) for size in targets.values())
    sparse_rate = train.sparse_learning_rate or train.learning_rate
    shapes = {
        "sparse": (("sparse", sparse, sparse_rate),),
        "lora": (("low-rank", low_rank, train.learning_rate),),
        "full": (("full", shape.parameters + shape.head, train.learning_rate),),
        "slora": (
            ("sparse", sparse, sparse_rate),
            ("low-rank", low_rank, train.learning_rate),
        ),
    }[method.kind]
    steps = split_steps(spec, train.steps) if train.steps else (None,) * len(shapes)
    return tuple(
        StagePlan(name=name, steps=count, trainable=trainable, learning_rate=rate)
        for (name, trainable, rate), count in zip(shapes, steps, strict=True)
    )


def _mask_entries(spec: Spec, size: tuple[int, int]) -> int:
    method = spec.method
    return mask_entries(method.mask, size, density=method.density, rank=sized_by_rank(spec))


def sized_by_rank(spec: Spec) -> int | None:
    """The rank that rows, columns and blocks are sized by; None where the density sizes them."""
    # Without a hand-off there is no rank that a mask could lose by.
    method = spec.method
    return method.rank if method.kind == "slora" and method.sizing == "rank" else None


def _low_rank_entries(spec: Spec, size: tuple[int, int]) -> int:
    """What a low-rank stage starts with: gates only prune later."""
    method, (rows, columns) = spec.method, size
    whole = method.rank * (rows + columns)
    if method.factor_density == 1:
        return whole
    if method.factor_pruning == "gates":
        return whole + method.rank
    a, b = (method.rank, columns), (rows, method.rank)
    return entries(a, method.factor_density) + entries(b, method.factor_density)


def _notes(spec: Spec, targets: Mapping[str, tuple[int, int]]) -> list[str]:
    method, rank = spec.method, sized_by_rank(spec)
    if method.kind != "slora":
        return []
    if method.factor_density < 1 and method.factor_pruning == "fixed":
        return ["the hand-off is not exact: the masks of A and B drop part of what the rank holds"]
    # Rows and columns that compete without a limit may all fall to one layer.
    open_ended = method.allocation == "global" and method.sizing == "density"
    needed = {
        name: min(size)
        if open_ended
        else exact_rank(method.mask, size, density=method.density, rank=rank)
        for name, size in targets.items()
    }
    losing = [name for name, exact in needed.items() if exact > method.rank]
    if not losing:
        return [f"the hand-off at rank {method.rank} is exact: no update has more"]
    if method.handoff.residual == "fold":
        return ["the hand-off loses nothing: what the rank does not hold is folded into the base"]
    worst = max(losing, key=lambda name: needed[name])
    return [
        f"the hand-off at rank {method.rank} is not exact: a {method.mask} mask can have rank "
        f"{needed[worst]} in {worst}, and in {len(losing)} of {len(targets)} layers more than the "
        "spec's. Masks of rows, columns or blocks with sizing: rank are exact"
    ]


def _method_faults(spec: Spec) -> list[Fault]:
    """Wishes of the method that exclude each other."""
    method, faults = spec.method, list[Fault]()
    sparse, low_rank = method.kind in ("slora", "sparse"), method.kind in ("slora", "lora")
    by = method.score if method.mask in STRUCTURES else method.mask
    if sparse and method.allocation == "global" and (by == "random" or method.mask == "blocks"):
        what = "blocks" if method.mask == "blocks" else "random masks"
        remedy = "Use allocation: uniform, or another mask."
        faults.append(Fault("method.allocation", f"{what} can't compete over layers", remedy))
    if method.init != "zero" and (method.kind != "lora"):
        problem = f"{method.init} is a start of its own, and kind {method.kind} has another"
        faults.append(Fault("method.init", problem, "Use kind: lora, or init: zero."))
    if method.factor_density < 1 and not low_rank:
        problem = f"kind {method.kind} has no factors"
        faults.append(Fault("method.factor_density", problem, "Leave it at 1.0."))
    return faults


def _cluster_faults(spec: Spec) -> list[Fault]:
    """Wishes of the cluster that can't be, or that would have no effect."""
    cluster, faults, full = spec.cluster, list[Fault](), spec.method.kind == "full"
    if full and cluster.sync_every > 1:
        problem = "kind full exchanges every step: its optimiser is cut over the workers"
        faults.append(Fault("cluster.sync_every", problem, "Use 1, or another method.kind."))
    if full and cluster.exchange_dtype != "float32":
        problem = "kind full exchanges in the type of the model"
        faults.append(Fault("cluster.exchange_dtype", problem, "Leave it at float32."))
    for key, plain in (("outer", "average"), ("average", "factors")):
        if cluster.sync_every == 1 and (asked := getattr(cluster, key)) != plain:
            problem = f"{asked} is of steps that workers take alone, and sync_every is 1"
            faults.append(Fault(f"cluster.{key}", problem, "Use a sync_every above 1."))
    if not isinstance(cluster.workers, int) and cluster.workers.min > cluster.workers.max:
        problem = f"min {cluster.workers.min} is above max {cluster.workers.max}"
        faults.append(Fault("cluster.workers", problem, "Swap them."))
    return faults


def _sharding(spec: Spec, prediction: Prediction | None) -> tuple[str, str]:
    if prediction is not None:
        return prediction.sharding, prediction.reason
    if (asked := spec.cluster.sharding) != "auto":
        return asked, "as the spec says"
    return "replicate", "auto: the first choice; memory was not predicted"


def _predicted(
    spec: Spec,
    outlook: Outlook,
    targets: Mapping[str, tuple[int, int]],
    stages: tuple[StagePlan, ...],
    *,
    micro: int,
    accumulation: int,
) -> Prediction:
    head = outlook.head if spec.method.kind != "full" else 0
    sparse = spec.method.kind in ("slora", "sparse")
    return foresee(
        spec,
        outlook,
        targets=targets,
        entries={name: _mask_entries(spec, size) for name, size in targets.items() if sparse},
        stages=tuple(
            Stage(
                stage.name,
                stage.steps,
                stage.trainable + head,
                exact=stage.name != "sparse" or counted_exactly(spec.method),
            )
            for stage in stages
        ),
        micro=micro,
        accumulation=accumulation,
    )


def _memory_fault(prediction: Prediction) -> Fault:
    remedy = (
        "Use more workers or larger ones (cluster.machine.memory_gb), a smaller "
        "train.micro_batch_size or data.max_length, or model.dtype: bfloat16."
    )
    assert prediction.fault
    return Fault("cluster.sharding", prediction.fault, remedy)


def batch_faults(spec: Spec) -> list[Fault]:
    """What of the batch can't be dealt to the workers; needs no model."""
    if not isinstance(spec.cluster.workers, int):
        # An elastic run can't choose how many it gets: the rest of a batch is filled up.
        return []
    batch, workers, micro = spec.train.batch_size, spec.workers, spec.train.micro_batch_size
    if batch % workers:
        near = max(workers, round(batch / workers) * workers)
        problem = f"{batch} sequences can't be divided by {workers} workers"
        return [Fault("train.batch_size", problem, f"Use a multiple of {workers}, e.g. {near}.")]
    per_worker = batch // workers
    if per_worker > micro and per_worker % micro:
        problem = f"{per_worker} sequences a worker can't be cut into micro-batches of {micro}"
        fits = max(n for n in range(1, micro + 1) if per_worker % n == 0)
        return [Fault("train.micro_batch_size", problem, f"Use a divisor, e.g. {fits}.")]
    return []


def deal(batch_size: int, micro_batch_size: int, workers: int) -> tuple[int, int, int]:
    """Sequences a worker, in a micro-batch, and micro-batches, for any number of workers.

    Where they don't divide the batch, the last of them get less, filled up with nothing.
    """
    per_worker = -(-batch_size // workers)
    micro = min(micro_batch_size, per_worker)
    return per_worker, micro, -(-per_worker // micro)


def _targets(spec: Spec, shape: Shape) -> tuple[dict[str, tuple[int, int]], list[Fault]]:
    if spec.method.kind == "full":
        return {}, []
    linears = dict(shape.linears)
    if not linears:
        return {}, [Fault("model.path", "no linear layer was found in it", "Use a transformer.")]
    wanted = spec.method.targets
    if wanted == "all-linear":
        return linears, [_expert_fault(shape.experts[0])] if shape.experts else []
    faults = [
        _expert_fault(named[0])
        if (named := [n for n in shape.experts if matches(n.removesuffix(".weight"), pattern)])
        else Fault(
            f"method.targets[{index}]",
            f"{pattern!r} matches no linear layer",
            f"There is: {', '.join(kinds(linears))}.",
        )
        for index, pattern in enumerate(wanted)
        if not any(matches(name, pattern) for name in linears)
    ]
    chosen = {n: s for n, s in linears.items() if any(matches(n, p) for p in wanted)}
    return chosen, faults


def _expert_fault(name: str) -> Fault:
    problem = f"{name} belongs to experts that are fused into one tensor and can't be adapted"
    return Fault("method.targets", problem, "Name the linear layers, e.g. [q_proj, v_proj].")


def _rank_faults(spec: Spec, targets: Mapping[str, tuple[int, int]]) -> list[Fault]:
    if spec.method.kind not in ("slora", "lora") or not targets:
        return []
    name, shape = min(targets.items(), key=lambda item: min(item[1]))
    # LoRA-GA takes as many singular vectors again.
    twice = spec.method.init == "lora-ga"
    most = min(shape) // 2 if twice else min(shape)
    if spec.method.rank <= most:
        return []
    what = "half the smallest target" if twice else "the smallest target"
    problem = f"{spec.method.rank} is above {what}, {name} of {shape[0]} x {shape[1]}"
    return [Fault("method.rank", problem, f"Use 1 to {most}, or other method.targets.")]


def steps_for(sequences: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps in which every sequence is seen `epochs` times; the last may be short."""
    return math.ceil(sequences * epochs / batch_size)
