"""What one worker holds, line by line, in each phase of a run; the largest phase is its peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.predict.activations import activation_bytes, logit_bytes
from jobs.predict.question import Question, Stage

RUNTIME = 630_000_000
"""Of a worker on a CPU before it loads anything: python, torch, transformers, deepspeed, ray, and
the code of their kernels once they have run. Measured with `tests.benchmarks.memory`."""
CONTEXT = 1_000_000_000
"""What CUDA and NCCL take beside torch's own allocations; assumed, and not in the measured peak."""
ALLOCATOR = (60_000_000, 0.3)
"""What the C library's heap holds beside what is asked of it: a constant, and a share of what comes
and goes in pieces small enough for the heap. It varies by a tenth of the peak."""
GATHERING = 120_000_000
"""The same constant of weights that are gathered and dropped layer by layer, and of DeepSpeed's
hooks on every layer. Fitted, as the shares are, to what `tests.benchmarks.memory` measured."""
HEAP_PIECE = 32 << 20
"""Pieces above this are given back to the system at once, and waste nothing."""
FLOAT32 = 4
MASTER, MOMENTS, BUCKET, SNAPSHOT = 4, 8, 4, 12
"""Bytes for each number that is trained, whole on every worker."""
POSITION, COLUMN = 8, 4
"""Bytes for each entry of a mask: where it lies, and its column for the sampled product."""
PREFETCHED = 100_000_000
"""Numbers that are gathered ahead on a GPU, at most."""


@dataclass(frozen=True)
class Phase:
    """One part of a run, and its lines in bytes."""

    name: str
    lines: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.lines.values())


@dataclass(frozen=True)
class Memory:
    """One worker's memory under one way of holding the base."""

    phases: tuple[Phase, ...]

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        return self.worst.total


def predict_memory(asked: Question, sharding: str) -> Memory:
    """Every phase, what is zero left out."""
    return Memory(
        tuple(
            Phase(name, {line: size for line, size in lines.items() if size})
            for name, lines in _phases(asked, sharding)
        )
    )


def group_size(asked: Question, sharding: str) -> int:
    """Workers among which one copy of the base is dealt out."""
    sizes = {"replicate": 1, "node": asked.place.per_node, "cluster": asked.place.workers}
    return sizes[sharding]


def _phases(asked: Question, sharding: str) -> Iterator[tuple[str, dict[str, int]]]:
    if asked.place.cpu:
        yield "loading", _around(asked) | _loaded(asked)
    for index, stage in enumerate(asked.stages):
        if index:
            yield "hand-off", _around(asked) | _held(asked, sharding) | _handed(asked)
        if asked.full:
            yield stage.name, _full(asked, stage, sharding)
        else:
            yield stage.name, _adapted(asked, stage, sharding)


def _around(asked: Question) -> dict[str, int]:
    return {"runtime": RUNTIME} if asked.place.cpu else {}


def _loaded(asked: Question) -> dict[str, int]:
    """The whole base, before it is dealt out; its files too where they are of another type."""
    count, size = asked.base_parameters, asked.dtype_bytes
    # Of the same type the weights are the file's own pages, and take no room twice.
    converted = round(asked.base.file_bytes / count) != size
    return {"base": count * size, "files": asked.base.file_bytes if converted else 0}


def _held(asked: Question, sharding: str) -> dict[str, int]:
    """The frozen base between two uses, and what of it is whole while it is used."""
    group, size = group_size(asked, sharding), asked.dtype_bytes
    if group == 1:
        return {"base": asked.base_parameters * size}
    ahead = 0 if asked.place.cpu else min(PREFETCHED, asked.base_parameters)
    return {
        "base": asked.base.share(group) * size,
        "gathered": max(asked.base.largest, ahead) * size,
    }


def _adapted(asked: Question, stage: Stage, sharding: str) -> dict[str, int]:
    n = stage.trained
    travels = asked.exchange_bytes if asked.exchange_bytes < FLOAT32 else 0
    # Of a head in bfloat16 the layers have a rounded copy, with gradients of its own.
    copies = asked.method.head * asked.dtype_bytes if asked.dtype_bytes < FLOAT32 else 0
    lines = {
        **_around(asked),
        **_held(asked, sharding),
        "trained": n * MASTER + copies,
        "gradients": n * (BUCKET + travels) + copies,
        "optimiser": n * (MOMENTS + _local_moments(asked)),
        "masks": _masks(asked, stage),
        "activations": activation_bytes(asked, stage),
        "logits": logit_bytes(asked),
        "snapshot": _snapshot(asked, n),
    }
    return lines | _wasted(asked, lines, sharding)


def _local_moments(asked: Question) -> int:
    """Bytes a number of what all agreed on last, and of the outer momentum."""
    if asked.local.every == 1:
        return 0
    return FLOAT32 * (2 if asked.local.momentum else 1)


def _full(asked: Question, stage: Stage, sharding: str) -> dict[str, int]:
    """DeepSpeed's own ZeRO: 1 for replicate, 3 for cluster, 3 with a second copy for node."""
    n, size, workers = stage.trained, asked.dtype_bytes, asked.place.workers
    whole = sharding == "replicate"
    lines = {
        **_around(asked),
        "base": n * size if whole else n * size // workers,
        "trained": n * MASTER // workers,
        "gradients": n * size if whole else n * size // workers,
        "optimiser": n * MOMENTS // workers,
        "activations": activation_bytes(asked, stage),
        "logits": logit_bytes(asked),
        "snapshot": _snapshot(asked, n),
    }
    if not whole:
        lines["gathered"] = _held(asked, "cluster").get("gathered", 0)
    if sharding == "node":
        lines["base"] += n * size // asked.place.per_node
    return lines | _wasted(asked, lines, sharding)


def _masks(asked: Question, stage: Stage) -> int:
    entries = sum(asked.method.mask_entries.values())
    return entries * ((POSITION + COLUMN) if stage.name == "sparse" else POSITION)


def _snapshot(asked: Question, n: int) -> int:
    """Of rank 0, which writes; on a GPU it lies in the host's memory."""
    return n * SNAPSHOT if asked.batching.checkpoint_every and asked.place.cpu else 0


def _handed(asked: Question) -> dict[str, int]:
    """The sparse stage's values, the factors of all layers, one layer's singular vectors."""
    targets = asked.method.targets.values()
    both = sum(asked.method.rank * sum(size) for size in targets)
    vectors = max((asked.method.rank * 4 * sum(size) for size in targets), default=0)
    return {
        "values": asked.stages[0].trained * FLOAT32,
        "masks": sum(asked.method.mask_entries.values()) * POSITION,
        "factors": both * 2 * FLOAT32,
        "singular vectors": vectors * FLOAT32,
    }


def _wasted(asked: Question, lines: Mapping[str, int], sharding: str) -> dict[str, int]:
    if not asked.place.cpu:
        return {}
    tokens = asked.batching.micro * asked.batching.length
    one_logits = tokens * asked.base.widths.vocab * asked.dtype_bytes
    small = lines["activations"] + (lines["logits"] if one_logits <= HEAP_PIECE else 0)
    constant, share = ALLOCATOR
    if sharding != "replicate":
        constant += GATHERING
        pieces = (one * asked.dtype_bytes for one in asked.base.sizes.values())
        small += sum(piece for piece in pieces if piece <= HEAP_PIECE)
    return {"allocator": constant + round(share * small)}
