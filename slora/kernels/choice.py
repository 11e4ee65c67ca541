"""The choice among kernels, by a short probe on the operands themselves.

Which kernel is the fastest depends on the processor, the dtype and the layer's shape, so nothing
but a measurement tells. The first product of each kind is computed by every kernel a few times; the
fastest serves all later products of that kind. Choices can be saved to a file and read back.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slora.kernels.pattern import EntryPattern
from slora.kernels.probe_limits import MIN_PROBED_WORK
from slora.kernels.torch_kernels import (
    HAS_SAMPLED_PRODUCT_ON_CPU,
    multiply_by_slabs,
    multiply_sampled,
)

Kernel = Callable[[Tensor, Tensor, EntryPattern], Tensor]
"""Takes `g [N, O]` and `x [N, I]` of one dtype, and the pattern. Returns `[Z]` in any float."""

PROBE_RUNS = 3
ROUNDED_HANDICAP = 0.9
"""A kernel that rounds its sums to bfloat16 must take at most this share of the time of one that
returns float32."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""Largest difference between two kernels, relative to the largest entry: sums of the same products
in another order, or rounded to the dtype."""


@dataclass(frozen=True)
class KernelChoice:
    """A kernel, and why."""

    kernel: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    """Median time of each kernel in the probe; empty where none was needed."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Kernels that failed in the probe, with the reason."""


class KernelChoices:
    """The choices of one process. Not safe for threads, like the layers that share one."""

    def __init__(self, choices: Mapping[str, KernelChoice] | None = None) -> None:
        self._choices = dict(choices or {})
        self._unreported: dict[str, KernelChoice] = {}

    def compute(self, grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
        """Return `(grad^T x)` at the entries of the pattern, `[Z]`, float32 (or float64)."""
        if grad_NO.dtype != x_NI.dtype:
            wide = torch.promote_types(grad_NO.dtype, x_NI.dtype)
            grad_NO, x_NI = grad_NO.to(wide), x_NI.to(wide)
        kernels = list_kernels(x_NI.device.type, x_NI.dtype)
        sum_dtype = torch.promote_types(x_NI.dtype, torch.float32)
        if len(kernels) == 1 or _count_work(x_NI, pattern) < MIN_PROBED_WORK:
            return multiply_by_slabs(grad_NO, x_NI, pattern).to(sum_dtype)
        key = _make_key(x_NI, pattern)
        choice = self._choices.get(key)
        if choice is None or choice.kernel not in kernels:
            choice = probe_kernels(kernels, grad_NO, x_NI, pattern)
            self._choices[key] = choice
        self._unreported.setdefault(key, choice)
        return kernels[choice.kernel](grad_NO, x_NI, pattern).to(sum_dtype)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the choices that this process has used, by kind of product."""
        return {key: asdict(choice) for key, choice in sorted(self._unreported.items())}

    def save(self, path: Path) -> None:
        """Write the choices for the next process. Raise OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(choice) for key, choice in self._choices.items()})
        temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(text)
        temporary.replace(path)


def load_choices(path: Path) -> KernelChoices:
    """Return the saved choices; none if the file is absent or unreadable: they are probed again."""
    try:
        saved = json.loads(path.read_text())
        return KernelChoices({key: KernelChoice(**choice) for key, choice in saved.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return KernelChoices()


@cache
def list_kernels(device_type: str, dtype: torch.dtype) -> dict[str, Kernel]:
    """Return the kernels that can compute on this device in this dtype, by name.

    Dense slabs can always, and are the only one in float64.
    """
    kernels: dict[str, Kernel] = {"slabs": multiply_by_slabs}
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return kernels
    if device_type == "cuda" or (device_type == "cpu" and HAS_SAMPLED_PRODUCT_ON_CPU):
        kernels["sampled"] = multiply_sampled
    # Imported where they can run: numba takes 0.2 s, and Triton comes with torch for GPUs only.
    if device_type == "cpu" and find_spec("numba") is not None:
        from slora.kernels.tile_kernel import SUPPORTED_DTYPES, multiply_by_tiles

        if dtype in SUPPORTED_DTYPES:
            kernels["tiles"] = multiply_by_tiles
    if device_type == "cuda" and find_spec("triton") is not None:
        from slora.kernels.entry_kernel import multiply_by_entries

        kernels["entries"] = multiply_by_entries
    return kernels


def probe_kernels(
    kernels: Mapping[str, Kernel], grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern
) -> KernelChoice:
    """Return the fastest kernel for these operands. One that fails or disagrees is left out."""
    expected = multiply_by_slabs(grad_NO, x_NI, pattern).float()
    tolerance = TOLERANCE[x_NI.dtype] * float(expected.abs().max().clamp_min(1e-30))
    seconds, unavailable = {}, {}
    for name, kernel in kernels.items():
        try:
            # The first call compiles.
            error = float((kernel(grad_NO, x_NI, pattern).float() - expected).abs().max())
            seconds[name] = _measure_seconds(kernel, grad_NO, x_NI, pattern)
        except RuntimeError as failure:
            unavailable[name] = " ".join(str(failure).split())[:200]
            continue
        if error > tolerance:
            del seconds[name]
            unavailable[name] = f"differs by {error:.3g} from the dense product"
    rounds = x_NI.dtype != torch.float32
    weights = {name: 1 / ROUNDED_HANDICAP if name == "slabs" and rounds else 1 for name in seconds}
    fastest = min(seconds, key=lambda name: seconds[name] * weights[name], default="slabs")
    milliseconds = {name: round(1e3 * value, 3) for name, value in seconds.items()}
    return KernelChoice(fastest, milliseconds, unavailable)


def _measure_seconds(kernel: Kernel, grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> float:
    seconds = []
    for _ in range(PROBE_RUNS):
        _synchronize(x_NI)
        start = time.perf_counter()
        kernel(grad_NO, x_NI, pattern)
        _synchronize(x_NI)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _synchronize(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def _count_work(x_NI: Tensor, pattern: EntryPattern) -> int:
    return x_NI.shape[0] * pattern.shape[0] * pattern.shape[1]


def _make_key(x_NI: Tensor, pattern: EntryPattern) -> str:
    """Return the kind of a product; numbers of tokens and of entries count by their power of 2."""
    rows, columns = pattern.shape
    tokens, entries = (1 << (n - 1).bit_length() for n in (x_NI.shape[0], pattern.nnz))
    dtype = str(x_NI.dtype).removeprefix("torch.")
    threads = f", {torch.get_num_threads()} threads" if x_NI.device.type == "cpu" else ""
    return f"{rows}x{columns}, {entries} entries, {tokens} tokens, {dtype}{threads}"
