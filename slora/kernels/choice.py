"""The choice among kernels, by a short probe.

Which kernel is the fastest depends on the processor, the dtype and the layer's shape, so nothing
but a measurement tells. Before a run's first step every kernel computes a product of each kind a
few times, and the fastest serves all of that kind. Kernels sum in different orders: who wants equal
bits again keeps the choices.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
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
    """Shortest time of each kernel in the probe; empty where none was needed."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Kernels that failed in the probe, with the reason."""


class KernelChoices:
    """The kernel of each kind of product, fixed once for a run: a run repeats the same sums.

    Products of kinds without a choice, and small ones, are taken from dense slabs.
    """

    def __init__(self, choices: Mapping[str, KernelChoice] | None = None) -> None:
        self._choices = dict(choices or {})

    def compute(self, grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
        """Return `(grad^T x)` at the entries of the pattern, `[Z]`, float32 (or float64)."""
        if grad_NO.dtype != x_NI.dtype:
            wide = torch.promote_types(grad_NO.dtype, x_NI.dtype)
            grad_NO, x_NI = grad_NO.to(wide), x_NI.to(wide)
        kernel = self._find_kernel(x_NI, pattern)
        return kernel(grad_NO, x_NI, pattern).to(torch.promote_types(x_NI.dtype, torch.float32))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the choices by kind of product, as plain values."""
        return {kind: asdict(choice) for kind, choice in sorted(self._choices.items())}

    def choose(
        self, patterns: Iterable[EntryPattern], *, tokens: int, dtype: torch.dtype
    ) -> KernelChoices:
        """Return a choice for each kind of these patterns: the one here, or else a probe's.

        The probe's operands are random, `tokens` long, in `dtype`, on the patterns' device.
        """
        choices: dict[str, KernelChoice] = {}
        for pattern in patterns:
            device = pattern.columns.device
            kernels = list_kernels(device.type, dtype)
            kind = _describe_kind(pattern, dtype)
            if kind in choices or not _is_probed(kernels, tokens, pattern):
                continue
            known = self._choices.get(kind)
            if known is None or known.kernel not in kernels:
                grad_NO, x_NI = (
                    torch.randn(tokens, width, device=device, dtype=dtype)
                    for width in pattern.shape
                )
                known = probe_kernels(kernels, grad_NO, x_NI, pattern)
            choices[kind] = known
        return KernelChoices(choices)

    def update(self, other: KernelChoices) -> None:
        """Take over the choices of another, in place of those of the same kinds."""
        self._choices.update(other._choices)

    def _find_kernel(self, x_NI: Tensor, pattern: EntryPattern) -> Kernel:
        kernels = list_kernels(x_NI.device.type, x_NI.dtype)
        choice = self._choices.get(_describe_kind(pattern, x_NI.dtype))
        if choice is None or not _is_probed(kernels, x_NI.shape[0], pattern):
            return multiply_by_slabs
        return kernels.get(choice.kernel, multiply_by_slabs)


def read_choices(saved: Any) -> KernelChoices:
    """Return the choices that `KernelChoices.describe` returned; none of what is not like that."""
    try:
        return KernelChoices(
            {
                str(kind): KernelChoice(
                    str(choice["kernel"]),
                    {str(name): float(value) for name, value in choice["milliseconds"].items()},
                    {str(name): str(why) for name, why in choice["unavailable"].items()},
                )
                for kind, choice in saved.items()
            }
        )
    except (AttributeError, KeyError, TypeError, ValueError):
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
    # A busy machine delays a run, and makes none faster.
    return min(seconds)


def _synchronize(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def _is_probed(kernels: Mapping[str, Kernel], tokens: int, pattern: EntryPattern) -> bool:
    """Return whether another kernel than dense slabs could be worth its probe."""
    work = tokens * pattern.shape[0] * pattern.shape[1]
    return len(kernels) > 1 and work >= MIN_PROBED_WORK


def _describe_kind(pattern: EntryPattern, dtype: torch.dtype) -> str:
    """Return the kind of a product; numbers of entries count by their power of 2.

    The number of tokens does not: all kernels' times grow with it, and a kernel that changed with
    it would change a sum's last bits from one micro-batch to the next.
    """
    rows, columns = pattern.shape
    entries = 1 << (pattern.nnz - 1).bit_length()
    is_cpu = pattern.columns.device.type == "cpu"
    threads = f", {torch.get_num_threads()} threads" if is_cpu else ""
    name = str(dtype).removeprefix("torch.")
    return f"{rows}x{columns}, {entries} entries, {name}{threads}"
