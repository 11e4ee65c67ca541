"""Memory of a worker, line by line, in each phase of a run; the largest phase is its peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.plan.estimate.activations import estimate_activations, estimate_logits
from jobs.plan.estimate.inputs import EstimateInput, StageFacts
from slora.handoff.sketch_size import count_sketch_numbers
from slora.kernels.probe_limits import COMPILER_BYTES, MIN_PROBED_WORK
from slora.layers.shapes import count_experts, count_factor_entries

RUNTIME = 670_000_000
"""Bytes of a CPU worker before it loads anything: python, torch, transformers, ray and the code of
their kernels. Measured with `tests.benchmarks.memory`."""
DEEPSPEED = 125_000_000
"""DeepSpeed's on top, which only sharded bases and full fine-tuning load."""
CONTEXT = 1_000_000_000
"""Bytes of CUDA and NCCL beside torch's allocations; assumed, and not in the measured peak."""
ALLOCATOR = (60_000_000, 0.3)
"""Overhead of the C library's heap: a constant, and a share of the allocations that are small
enough for it. It varies by a tenth of the peak."""
GATHERING = 120_000_000
"""The constant for weights that are gathered and dropped layer by layer, and for DeepSpeed's hooks
on every layer. Fitted, as the shares are, to measurements of `tests.benchmarks.memory`."""
HEAP_PIECE = 32 << 20
"""Larger allocations return to the system at once and waste nothing."""
FLOAT32 = 4
MASTER, MOMENTS, BUCKET, SNAPSHOT = 4, 8, 4, 12
"""Bytes per trained parameter, all of which are on every worker."""
POSITION, COLUMN = 8, 4
"""Bytes per entry of a mask: its index, and in the sparse stage its column; the base's own entry
comes on top."""
PREFETCHED = 100_000_000
"""Maximum number of parameters that are prefetched on a GPU."""


@dataclass(frozen=True)
class MemoryPhase:
    """A phase of a run, and its lines in bytes."""

    name: str
    lines: Mapping[str, int]

    @property
    def total(self) -> int:
        """Return the sum of the lines."""
        return sum(self.lines.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a worker under one sharding."""

    phases: tuple[MemoryPhase, ...]

    @property
    def worst(self) -> MemoryPhase:
        """Return the phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Return the bytes of the phase that needs most."""
        return self.worst.total


def estimate_memory(inputs: EstimateInput, sharding: str) -> MemoryEstimate:
    """Return the lines of every phase, without those of zero."""
    return MemoryEstimate(
        tuple(
            MemoryPhase(name, {line: size for line, size in lines.items() if size})
            for name, lines in _iter_phases(inputs, sharding)
        )
    )


def get_group_size(inputs: EstimateInput, sharding: str) -> int:
    """Return the number of workers that share one copy of the base."""
    sizes = {"replicate": 1, "node": inputs.resources.per_node, "cluster": inputs.resources.workers}
    return sizes[sharding]


def _iter_phases(inputs: EstimateInput, sharding: str) -> Iterator[tuple[str, dict[str, int]]]:
    if inputs.resources.cpu:
        yield "loading", _get_runtime_lines(inputs, sharding) | _get_loading_lines(inputs)
    for index, stage in enumerate(inputs.stages):
        if index:
            yield (
                "hand-off",
                _get_runtime_lines(inputs, sharding)
                | _get_base_lines(inputs, sharding)
                | _get_handoff_lines(inputs),
            )
        if inputs.is_full:
            yield stage.name, _get_full_lines(inputs, stage, sharding)
        else:
            yield stage.name, _get_adapter_lines(inputs, stage, sharding)


def _get_runtime_lines(inputs: EstimateInput, sharding: str) -> dict[str, int]:
    if not inputs.resources.cpu:
        return {}
    uses_deepspeed = inputs.is_full or get_group_size(inputs, sharding) > 1
    return {"runtime": RUNTIME + (DEEPSPEED if uses_deepspeed else 0)}


def _get_loading_lines(inputs: EstimateInput) -> dict[str, int]:
    """Return the unsharded base, and its files if they have another type."""
    count, size = inputs.base_parameters, inputs.dtype_bytes
    # Weights of the same type are mapped from the file, and take no memory twice.
    converted = round(inputs.base.file_bytes / count) != size
    return {"base": count * size, "files": inputs.base.file_bytes if converted else 0}


def _get_base_lines(inputs: EstimateInput, sharding: str) -> dict[str, int]:
    """Return the frozen base at rest, and the part that is gathered while it is used."""
    group, size = get_group_size(inputs, sharding), inputs.dtype_bytes
    if group == 1:
        return {"base": inputs.base_parameters * size}
    ahead = 0 if inputs.resources.cpu else min(PREFETCHED, inputs.base_parameters)
    return {
        "base": inputs.base.count_per_worker(group) * size,
        "gathered": max(inputs.base.largest, ahead) * size,
    }


def _get_adapter_lines(inputs: EstimateInput, stage: StageFacts, sharding: str) -> dict[str, int]:
    trained = stage.trained
    exchanged = inputs.exchange_bytes if inputs.exchange_bytes < FLOAT32 else 0
    # A head in bfloat16 has a rounded copy in the layers, with gradients of its own.
    copies = inputs.method.head * inputs.dtype_bytes if inputs.dtype_bytes < FLOAT32 else 0
    lines = {
        **_get_runtime_lines(inputs, sharding),
        **_get_base_lines(inputs, sharding),
        "trained": trained * MASTER + copies,
        "gradients": trained * (BUCKET + exchanged) + copies,
        "optimiser": trained * (MOMENTS + _count_local_bytes(inputs)),
        "masks": _count_mask_bytes(inputs, stage),
        "factors": _count_masked_factor_bytes(inputs, stage),
        "compiler": _count_compiler_bytes(inputs),
        "activations": estimate_activations(inputs, stage),
        "logits": estimate_logits(inputs),
        "snapshot": _count_snapshot_bytes(inputs, trained),
    }
    return lines | _get_allocator_lines(inputs, lines, sharding)


def _count_local_bytes(inputs: EstimateInput) -> int:
    """Return the bytes per parameter of the last synchronised values and the outer momentum."""
    if inputs.local.sync_every == 1:
        return 0
    return FLOAT32 * (2 if inputs.local.momentum else 1)


def _get_full_lines(inputs: EstimateInput, stage: StageFacts, sharding: str) -> dict[str, int]:
    """Return the lines of DeepSpeed's ZeRO: 1 for replicate, 3 for cluster, hpZ for node."""
    trained, size, workers = stage.trained, inputs.dtype_bytes, inputs.resources.workers
    replicated = sharding == "replicate"
    lines = {
        **_get_runtime_lines(inputs, sharding),
        "base": trained * size if replicated else trained * size // workers,
        "trained": trained * MASTER // workers,
        "gradients": trained * size if replicated else trained * size // workers,
        "optimiser": trained * MOMENTS // workers,
        "activations": estimate_activations(inputs, stage),
        "logits": estimate_logits(inputs),
        "snapshot": _count_snapshot_bytes(inputs, trained),
    }
    if not replicated:
        lines["gathered"] = _get_base_lines(inputs, "cluster").get("gathered", 0)
    if sharding == "node":
        lines["base"] += trained * size // inputs.resources.per_node
    return lines | _get_allocator_lines(inputs, lines, sharding)


def _count_mask_bytes(inputs: EstimateInput, stage: StageFacts) -> int:
    entries = sum(inputs.method.mask_entries.values())
    per_entry = POSITION + COLUMN + inputs.dtype_bytes if stage.name == "sparse" else POSITION
    return entries * per_entry


def _count_masked_factor_bytes(inputs: EstimateInput, stage: StageFacts) -> int:
    """Return the bytes of A and B whole, of what the product reads, and of the positions of their
    trained entries. Those of B are held twice, once narrow; A's are counted like them.
    """
    if stage.name != "low-rank" or not inputs.method.masks_factors:
        return 0
    shapes, rank = list(inputs.method.targets.values()), inputs.method.rank
    factors = sum(count_factor_entries(shape, rank) for shape in shapes)
    plain = [shape for shape in shapes if count_experts(shape) == 1]
    # In float32 the product reads A itself, and B with the scale in it.
    copied = plain if inputs.dtype_bytes < FLOAT32 else [(rows, 0) for rows, _ in plain]
    copies = inputs.dtype_bytes * rank * sum(map(sum, copied))
    return FLOAT32 * factors + copies + (POSITION + COLUMN) * (stage.trained - inputs.method.head)


def _count_compiler_bytes(inputs: EstimateInput) -> int:
    """Return the bytes of the compiler of kernels, which stays when the sparse stage has ended."""
    tokens = inputs.batching.micro * inputs.batching.length
    sides = inputs.method.targets.values() if inputs.method.uses_kernels else ()
    is_probed = any(tokens * rows * columns >= MIN_PROBED_WORK for rows, columns in sides)
    return COMPILER_BYTES if is_probed and inputs.resources.cpu else 0


def _count_snapshot_bytes(inputs: EstimateInput, trained: int) -> int:
    """Return the bytes of a checkpoint on rank 0; on a GPU it is in the host's memory."""
    return trained * SNAPSHOT if inputs.batching.checkpoint_every and inputs.resources.cpu else 0


def _get_handoff_lines(inputs: EstimateInput) -> dict[str, int]:
    """Return the sparse values, the factors and sketches of all layers, and one layer's singular
    vectors.
    """
    targets = inputs.method.targets.values()
    factors = sum(inputs.method.rank * sum(size) for size in targets)
    vectors = max((inputs.method.rank * 4 * sum(size) for size in targets), default=0)
    return {
        "values": inputs.stages[0].trained * FLOAT32,
        "masks": sum(inputs.method.mask_entries.values()) * POSITION,
        "factors": factors * 2 * FLOAT32,
        "sketches": _count_sketch_bytes(inputs),
        "singular vectors": vectors * FLOAT32,
    }


def _count_sketch_bytes(inputs: EstimateInput) -> int:
    """Return the bytes of all layers' sketches, each with a probe of its size."""
    method = inputs.method
    if method.sketch_norm == "weights":
        return 0
    gradients = method.sketch_norm == "loss"
    numbers = (
        count_sketch_numbers(shape, method.rank, gradients=gradients)
        for shape in method.targets.values()
        if count_experts(shape) == 1
    )
    return 2 * FLOAT32 * sum(numbers)


def _get_allocator_lines(
    inputs: EstimateInput, lines: Mapping[str, int], sharding: str
) -> dict[str, int]:
    if not inputs.resources.cpu:
        return {}
    tokens = inputs.batching.micro * inputs.batching.length
    logits_tensor = tokens * inputs.base.widths.vocab * inputs.dtype_bytes
    small = lines["activations"] + (lines["logits"] if logits_tensor <= HEAP_PIECE else 0)
    constant, share = ALLOCATOR
    if sharding != "replicate":
        constant += GATHERING
        pieces = (size * inputs.dtype_bytes for size in inputs.base.sizes.values())
        small += sum(piece for piece in pieces if piece <= HEAP_PIECE)
    if inputs.batching.recomputes:
        # Such workers give freed blocks back at once: see `jobs.train.allocator`.
        share = 0.0
    return {"allocator": constant + round(share * small)}
