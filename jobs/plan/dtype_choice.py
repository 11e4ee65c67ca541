"""The choice of `model.dtype: auto`: bfloat16 where the hardware computes it faster. No torch.

On CPUs it takes both instructions for bfloat16 and a measurement: a process with torch multiplies
matrices of the model's size in both types (`jobs.train.model.dtype_probe`). The result is cached by
processor, torch and size. On GPUs it takes a compute capability of 8.0.

A plan chooses for the machine that makes it; a run settles the dtype on the machines of its workers
(`jobs.train.cluster.settle_dtype`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter

from jobs.errors import JobsError
from jobs.inspect.answer_cache import recall_answer
from jobs.inspect.gpu_capability import list_gpu_capabilities
from jobs.inspect.inspection_client import inspect_model
from jobs.inspect.model_files import ModelFiles
from jobs.spec.schema import RunSpec
from slora.kernels.processor import Processor, read_processor
from slora.layers.shapes import get_expert_shape

Dtype = Literal["float32", "bfloat16"]
SpecT = TypeVar("SpecT", bound=RunSpec)
AUTO: Literal["auto"] = "auto"
MIN_SPEEDUP = 2.0
"""Products are only a part of a step: below this factor, rounding and casts are not worth it."""
MIN_CAPABILITY = 8.0
"""Of a GPU that computes in bfloat16: NVIDIA's Ampere. Older ones emulate it."""
MAX_TOKENS, MAX_SIDE = 512, 1024
"""Bounds of the measured products: all of them together take less than half a second."""


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of the base's weights in a run, and why."""

    dtype: Dtype
    is_auto: bool = False
    """Whether the spec left it to the hardware."""
    reason: str = "set in the spec"
    float32_s: float | None = None
    """Seconds of the measured products in float32; None if nothing was measured."""
    bfloat16_s: float | None = None

    @property
    def speedup(self) -> float | None:
        """Return how many times faster the products are in bfloat16."""
        return self.float32_s / self.bfloat16_s if self.float32_s and self.bfloat16_s else None


FLOAT32 = DtypeChoice("float32")


@dataclass(frozen=True)
class ProductSeconds:
    """Seconds of the same products in both types."""

    float32_s: float
    bfloat16_s: float


@dataclass(frozen=True)
class ProbeShape:
    """The sizes of the products to measure: `[tokens, columns] x [columns, rows]` and back."""

    tokens: int
    rows: int
    columns: int


_SECONDS = TypeAdapter(ProductSeconds)


def choose_dtype(spec: RunSpec, model: ModelFiles) -> DtypeChoice:
    """Return the dtype that a run's spec sets, or the one that suits this machine."""
    if spec.model.dtype != AUTO:
        return DtypeChoice(get_set_dtype(spec))
    shape = make_probe_shape(spec, model.linears)
    return choose_for_machine(shape, model.folder, on_gpu=spec.cluster.gpus_per_worker > 0)


def get_set_dtype(spec: RunSpec) -> Dtype:
    """Return the dtype of a spec that sets one, as each does that is planned."""
    assert spec.model.dtype != "auto", "choose a dtype before the run is planned"
    return spec.model.dtype


def set_dtype(spec: SpecT, dtype: Dtype | Literal["auto"]) -> SpecT:
    """Return the spec with this dtype."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": dtype})})


def make_probe_shape(spec: RunSpec, linears: Mapping[str, tuple[int, int]]) -> ProbeShape:
    """Return the shape of the widest layer's product in a run, at most `MAX_SIDE` a side."""
    tokens = spec.train.micro_batch_size * spec.data.max_length
    shapes = [get_expert_shape(shape) for shape in linears.values()]
    rows, columns = max(shapes, key=lambda shape: shape[0] * shape[1], default=(1, 1))
    return ProbeShape(min(tokens, MAX_TOKENS), min(rows, MAX_SIDE), min(columns, MAX_SIDE))


def choose_for_machine(shape: ProbeShape, folder: Path, *, on_gpu: bool) -> DtypeChoice:
    """Return the choice for this machine. `folder` is that of the model, for messages."""
    if on_gpu:
        return choose_for_gpus(list_gpu_capabilities())
    return choose_for_processor(read_processor(), lambda: _recall_or_probe(shape, folder))


def choose_for_gpus(capabilities: Sequence[float]) -> DtypeChoice:
    """Return bfloat16, unless one of the GPUs is too old for it."""
    if capabilities and (oldest := min(capabilities)) < MIN_CAPABILITY:
        reason = f"a GPU of compute capability {oldest} has no bfloat16"
        return DtypeChoice("float32", is_auto=True, reason=reason)
    return DtypeChoice("bfloat16", is_auto=True, reason="GPUs compute it faster than float32")


def choose_for_processor(
    processor: Processor, measure: Callable[[], ProductSeconds | None]
) -> DtypeChoice:
    """Return bfloat16 if the processor has instructions for it and is at least twice as fast."""
    if not processor.flags:
        reason = "this processor has neither AMX nor AVX512-BF16"
        return DtypeChoice("float32", is_auto=True, reason=reason)
    if (seconds := measure()) is None:
        return DtypeChoice("float32", is_auto=True, reason="bfloat16 could not be measured here")
    speedup = seconds.float32_s / seconds.bfloat16_s
    is_faster = speedup >= MIN_SPEEDUP
    return DtypeChoice(
        "bfloat16" if is_faster else "float32",
        is_auto=True,
        reason=f"{speedup:.1f} x faster than float32 here"
        if is_faster
        else f"bfloat16 is only {speedup:.1f} x as fast here",
        float32_s=seconds.float32_s,
        bfloat16_s=seconds.bfloat16_s,
    )


@lru_cache(maxsize=64)
def _recall_or_probe(shape: ProbeShape, folder: Path) -> ProductSeconds | None:
    """Return the measured seconds, or None where torch is missing or fails."""
    sizes = asdict(shape)
    try:
        return recall_answer(
            "dtype",
            [asdict(read_processor()), sizes],
            parse=_SECONDS.validate_json,
            ask=lambda: inspect_model("probe_dtype", folder, **sizes),
        )
    except JobsError:
        return None
