"""Network traffic by cause: bytes that the busiest worker sends, and those that leave a machine.

W: workers that take part. In a ring all-reduce of N bytes each sends 2 (W - 1) / W x N, in an
all-gather or a reduce-scatter half of that; in a broadcast N. Workers of one machine are neighbours
in the ring, so the bytes that leave a machine are those that one worker sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.plan.estimate.inputs import EstimateInput, StageFacts
from jobs.plan.estimate.memory import get_group_size
from slora.handoff.sketch_size import count_sketch_numbers
from slora.layers.shapes import count_experts

STATUS_NUMBERS = 3
"""Numbers that are sent with the gradients, plus one for the loss of each step: float32."""
FACTOR_FACTS = 5
"""Numbers that are sent with a layer's factors: statistics of the hand-off."""
FLOAT32, FLOAT64 = 4, 8
PERSISTENT, REUSED = 100_000, 1_000_000_000
"""DeepSpeed's ZeRO-3, which full fine-tuning uses, does not shard weights below the first number of
parameters, and keeps gathered weights that are used again within the second."""


@dataclass(frozen=True)
class Flow:
    """The traffic of one cause in one stage."""

    cause: str
    stage: str
    sent: int
    """Bytes that the busiest worker sends each time."""
    times: int | None
    """Number of times in the stage; None if unknown."""
    per_step: float
    """Number of times per optimizer step, on average; 0 outside of steps."""
    crosses_nodes: bool
    """The bytes leave the machine."""
    exact: bool = True

    @property
    def total(self) -> int | None:
        """Return the bytes sent in the stage, or None if unknown."""
        return None if self.times is None else self.sent * self.times

    @property
    def egress_per_step(self) -> int:
        """Return the bytes that leave a machine per optimizer step, on average."""
        return round(self.sent * self.per_step) if self.crosses_nodes else 0

    @property
    def egress(self) -> int | None:
        """Return the bytes that leave a machine in the stage."""
        return self.total if self.crosses_nodes else 0


def count_all_reduce_bytes(size: int, workers: int) -> int:
    """Count the bytes that each worker of a ring sends in an all-reduce of `size` bytes."""
    return 2 * size * (workers - 1) // workers


def count_all_gather_bytes(size: int, workers: int) -> int:
    """Count the bytes that each worker sends in an all-gather or reduce-scatter."""
    return size * (workers - 1) // workers


def estimate_traffic(inputs: EstimateInput, sharding: str) -> tuple[Flow, ...]:
    """Return all traffic of the run; none with a single worker."""
    if inputs.resources.workers == 1:
        return ()
    return tuple(_iter_flows(inputs, sharding))


def _iter_flows(inputs: EstimateInput, sharding: str) -> Iterator[Flow]:
    crosses_nodes = inputs.resources.nodes > 1
    if inputs.method.scored:
        yield Flow(
            "calibration", inputs.stages[0].name, _count_score_bytes(inputs), 1, 0.0, crosses_nodes
        )
    for index, stage in enumerate(inputs.stages):
        if index or inputs.method.broadcast_starts:
            yield Flow(
                "hand-off",
                stage.name,
                _count_handoff_bytes(inputs, after=index > 0)
                + (_count_sketch_bytes(inputs) if index else 0),
                1,
                0.0,
                crosses_nodes,
            )
            yield from _iter_sketch_gathers(inputs, stage, sharding)
        yield _estimate_gradients(inputs, stage, sharding, crosses_nodes=crosses_nodes)
        yield from _iter_base_flows(inputs, stage, sharding)


def _estimate_gradients(
    inputs: EstimateInput, stage: StageFacts, sharding: str, *, crosses_nodes: bool
) -> Flow:
    interval = 1 if inputs.is_full else inputs.local.sync_every
    if inputs.is_full:
        sent = _count_full_gradient_bytes(inputs, stage, sharding)
    else:
        sent = _count_bucket_bytes(inputs, stage) + _count_product_bytes(inputs, stage)
    # The remaining steps of a stage are exchanged at its end.
    times = None if stage.steps is None else -(-stage.steps // interval)
    exact = stage.exact and not inputs.is_full
    return Flow("gradients", stage.name, sent, times, 1 / interval, crosses_nodes, exact)


def _count_bucket_bytes(inputs: EstimateInput, stage: StageFacts) -> int:
    """Count the bytes of one exchange of gradients and status numbers."""
    status_bytes, workers = (
        FLOAT32 * (STATUS_NUMBERS + inputs.local.sync_every),
        inputs.resources.workers,
    )
    if inputs.exchange_bytes == FLOAT32:
        return count_all_reduce_bytes(FLOAT32 * stage.trained + status_bytes, workers)
    return count_all_reduce_bytes(
        inputs.exchange_bytes * stage.trained, workers
    ) + count_all_reduce_bytes(status_bytes, workers)


def _count_product_bytes(inputs: EstimateInput, stage: StageFacts) -> int:
    """Count the factors that a worker sends to those that average the products of their layers."""
    if (
        inputs.local.sync_every == 1
        or not inputs.local.averages_products
        or stage.name != "low-rank"
    ):
        return 0
    sizes = list(inputs.method.targets.values())
    others = [size for index, size in enumerate(sizes) if index % inputs.resources.workers]
    return FLOAT32 * inputs.method.rank * sum(map(sum, others))


def _count_full_gradient_bytes(inputs: EstimateInput, stage: StageFacts, sharding: str) -> int:
    size, workers = stage.trained * inputs.dtype_bytes, inputs.resources.workers
    if sharding == "replicate":
        return count_all_reduce_bytes(size, workers)
    # ZeRO-3 scatters gradients in every micro-batch; gloo reduces all of them everywhere.
    scattered = (
        count_all_reduce_bytes(size, workers)
        if inputs.resources.cpu
        else count_all_gather_bytes(size, workers)
    )
    return inputs.batching.accumulation * scattered


def _iter_base_flows(inputs: EstimateInput, stage: StageFacts, sharding: str) -> Iterator[Flow]:
    """Iterate over the gathers of the sharded base, in micro-batches and evaluations."""
    group = get_group_size(inputs, sharding)
    if inputs.is_full:
        yield _estimate_full_base(inputs, stage, sharding)
    if group == 1:
        return
    crosses_nodes = inputs.resources.nodes > 1 and (sharding == "cluster" or inputs.is_full)
    size, accumulation = inputs.dtype_bytes, inputs.batching.accumulation
    forward = _count_gather_bytes(inputs.base.iter_forward(), group, size)
    if not inputs.is_full:
        total = forward + _count_gather_bytes(inputs.base.iter_backward(), group, size)
        times = None if stage.steps is None else stage.steps * accumulation
        yield Flow("base", stage.name, total, times, accumulation, crosses_nodes)
    if inputs.batching.evaluates:
        evaluations, micros = _count_evaluations(inputs, stage), inputs.batching.eval_micros
        times = None if evaluations is None or micros is None else evaluations * micros
        yield Flow("evaluation", stage.name, forward, times, 0.0, crosses_nodes, exact=False)


def _estimate_full_base(inputs: EstimateInput, stage: StageFacts, sharding: str) -> Flow:
    """Return DeepSpeed's traffic: ZeRO-1 sends new weights, ZeRO-3 gathers those it shards."""
    workers, crosses_nodes = inputs.resources.workers, inputs.resources.nodes > 1
    if sharding == "replicate":
        sent = count_all_gather_bytes(stage.trained * inputs.dtype_bytes, workers)
        return Flow("base", stage.name, sent, stage.steps, 1.0, crosses_nodes)
    sharded = [size for size in inputs.base.sizes.values() if size >= PERSISTENT]
    # Weights gathered shortly before the backward are kept for it.
    passes = 1 if inputs.base.parameters < REUSED else 2
    sent = passes * _count_gather_bytes(sharded, workers, inputs.dtype_bytes)
    times = None if stage.steps is None else stage.steps * inputs.batching.accumulation
    return Flow(
        "base", stage.name, sent, times, inputs.batching.accumulation, crosses_nodes, exact=False
    )


def _count_gather_bytes(sizes: Iterable[int], workers: int, size: int) -> int:
    """Count the bytes that each worker sends until all of them have these weights."""
    return sum((workers - 1) * -(-count // workers) * size for count in sizes)


def _count_evaluations(inputs: EstimateInput, stage: StageFacts) -> int | None:
    """Count the evaluations before a stage (or after the hand-off), inside it and at its end."""
    if stage.steps is None:
        return None
    interval = inputs.batching.eval_every
    return 2 + (max(0, stage.steps - 1) // interval if interval else 0)


def _count_handoff_bytes(inputs: EstimateInput, *, after: bool) -> int:
    """Count the factors broadcast by the rank that computed them; `after` a sparse stage."""
    method, facts = inputs.method, FACTOR_FACTS if after else 0
    residual = method.mask_entries if after and method.keeps_residual else {}
    return FLOAT32 * sum(
        method.rank * sum(size) + facts + residual.get(name, 0)
        for name, size in method.targets.items()
    )


def _has_sketches(inputs: EstimateInput) -> bool:
    """Return whether the hand-off takes sketches: not of an update without a step."""
    return inputs.method.sketch_norm != "weights" and inputs.stages[0].steps != 0


def _count_sketch_bytes(inputs: EstimateInput) -> int:
    """Count the sketches of the layers' inputs, and outputs' gradients, summed over the workers."""
    method, workers = inputs.method, inputs.resources.workers
    if not _has_sketches(inputs):
        return 0
    gradients = method.sketch_norm == "loss"
    return sum(
        count_all_reduce_bytes(
            FLOAT32 * count_sketch_numbers(shape, method.rank, gradients=gradients), workers
        )
        for shape in method.targets.values()
        if count_experts(shape) == 1
    )


def _iter_sketch_gathers(inputs: EstimateInput, stage: StageFacts, sharding: str) -> Iterator[Flow]:
    """Yield the gathers of a sharded base in the pass over the calibration sequences."""
    group, method = get_group_size(inputs, sharding), inputs.method
    if group == 1 or not _has_sketches(inputs) or stage == inputs.stages[0]:
        return
    size = inputs.dtype_bytes
    sent = _count_gather_bytes(inputs.base.iter_forward(), group, size)
    if method.sketch_norm == "loss":
        sent += _count_gather_bytes(inputs.base.iter_backward(), group, size)
    per_batch = -(-inputs.batching.sequences // inputs.resources.workers)
    times = method.calibration_batches * per_batch
    crosses_nodes = inputs.resources.nodes > 1 and sharding == "cluster"
    yield Flow("hand-off", stage.name, sent, times, 0.0, crosses_nodes, exact=False)


def _count_score_bytes(inputs: EstimateInput) -> int:
    sizes = (rows * columns for rows, columns in inputs.method.targets.values())
    return sum(count_all_reduce_bytes(FLOAT64 * size, inputs.resources.workers) for size in sizes)
