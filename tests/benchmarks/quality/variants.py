"""What is compared: methods as overrides of a spec, and the learning rates that a search starts at.

Counts are equal to rank 4: 4 (O + I) numbers a layer, as dense factors, sparse values, or a mask of
the entries of wider factors (r32 at 1/8, r128 at 1/32). A variant whose keys the schema does not
know is skipped with a message, so that the plan may be ahead of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.quality.corpora import RANK

LADDER = tuple(float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5))
"""The rates that may be tried, from 1e-6 to 5; a search moves along it by steps of 2 or 2.5."""

Grid = tuple[float, ...]
Point = Mapping[str, float]
"""A rate for each axis: adapter, sparse (the sparse stage of slora), head."""


@dataclass(frozen=True)
class Variant:
    """A method with the start of its search."""

    name: str
    method: Mapping[str, Any]
    grids: Mapping[str, Grid] = field(default_factory=dict)
    """The first grid of each axis, for a classifier; for a language model one step lower."""
    near: str | None = None
    """Search from the best point of that variant: four rates of the low-rank stage around it, and
    the neighbours on the other axes."""
    like: str | None = None
    """Run at the best point of that variant, without a search."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Axes of `like` that have another name here."""
    peft: str | None = None
    """Train with PEFT's own code: a name in peft_training.CONFIGS."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the spec's section `model`."""
    at_start: bool = False
    """Run at the middle of `like`'s first grids, which needs no search to be over."""
    tier: int = 1
    """0: what the claims are about; all runs of a tier come before those of the next."""


LORA: Grid = (1e-3, 2e-3, 5e-3, 1e-2)
SMALL: Grid = (5e-4, 1e-3, 2e-3, 5e-3)
FULL: Grid = (1e-4, 2e-4, 5e-4, 1e-3)
RANDOM: Grid = (5e-3, 1e-2, 2e-2, 5e-2)
"""Of values on random masks, of weights and of factors alike."""
HEAD: Grid = (2e-3, 5e-3, 1e-2, 2e-2)
"""The search of another axis holds the head at its second rate."""
MIDDLE = 1
"""The index of the rate that an axis has until its own turn comes."""

LORA_GRIDS = {"adapter": LORA, "head": HEAD}
SMALL_GRIDS = {"adapter": SMALL, "head": HEAD}
FULL_GRIDS = {"adapter": FULL, "head": HEAD}
RANDOM_GRIDS = {"adapter": RANDOM, "head": HEAD}
MAGNITUDE_GRIDS = {"adapter": (2e-3, 5e-3, 1e-2, 2e-2), "head": HEAD}
"""Of values on the largest weights: less than on random ones."""
SLORA_GRIDS = {"sparse": RANDOM, "adapter": LORA, "head": HEAD}
WIDE_GRIDS = {"sparse": RANDOM, "adapter": RANDOM, "head": HEAD}


def make_factors(rank: int, kind: str = "lora", **more: Any) -> dict[str, Any]:
    """Return the method of factors of this rank with as many trained numbers as rank RANK."""
    density = {} if rank == RANK else {"factor_density": RANK / rank}
    return {"kind": kind, "rank": rank, "alpha": 2 * rank, **density, **more}


def make_slora(rank: int, norm: str, residual: str = "drop") -> dict[str, Any]:
    """Return slora with this hand-off, at equal counts in both stages."""
    return make_factors(rank, "slora", handoff={"norm": norm, "residual": residual})


def make_late_slora(rank: int) -> dict[str, Any]:
    """Return slora that is handed over after its last step: its low-rank stage has none."""
    return {**make_slora(rank, "outputs"), "sparse_share": 1.0}


def make_lora(rank: int, **more: Any) -> dict[str, Any]:
    """Return LoRA with dense factors, of whatever count."""
    return {"kind": "lora", "rank": rank, "alpha": 2 * rank, **more}


WIDE_SLORA = "slora r128 outputs"
"""SLoRA at equal counts and the highest rank, which its claims are about; a stock LoRA."""
DEFAULT_SLORA = "slora r32 outputs"
"""The same at the rank that `kind: slora` has by default."""
LATE_SLORA = "slora r128 late"
"""Sparse values to the last step, then the hand-off: what remains is the same kind of LoRA."""
VARIANTS: tuple[Variant, ...] = (
    Variant("lora r4", make_lora(RANK), LORA_GRIDS, tier=0),
    Variant("sparse", {"kind": "sparse"}, RANDOM_GRIDS, tier=0),
    Variant("sparse magnitude", {"kind": "sparse", "mask": "magnitude"}, MAGNITUDE_GRIDS,
            tier=0),
    Variant("lora r4 float32", make_lora(RANK), like="lora r4", model={"dtype": "float32"},
            at_start=True, tier=0),
    Variant("sparse float32", {"kind": "sparse"}, like="sparse", model={"dtype": "float32"},
            at_start=True, tier=0),
    Variant("full", {"kind": "full"}, FULL_GRIDS, tier=0),
    Variant("factors r32", make_factors(32), RANDOM_GRIDS, tier=0),
    Variant("factors r128", make_factors(128), RANDOM_GRIDS, tier=0),
    Variant(WIDE_SLORA, make_slora(128, "outputs"), WIDE_GRIDS, tier=0),
    Variant(DEFAULT_SLORA, make_slora(32, "outputs"), like=WIDE_SLORA, tier=0),
    Variant(LATE_SLORA, make_late_slora(128), like="sparse", renamed={"adapter": "sparse"},
            tier=0),
    Variant("slora r4 weights", make_slora(RANK, "weights"), SLORA_GRIDS, tier=0),
    Variant("peft lora r4", make_lora(RANK), like="lora r4", peft="lora", tier=0),
    Variant("peft shira r4", make_lora(RANK), like="sparse", peft="shira", tier=0),
    Variant("lora r8", make_lora(8), LORA_GRIDS),
    Variant("lora r32", make_lora(32), LORA_GRIDS),
    Variant("factors r16", make_factors(16), RANDOM_GRIDS),
    Variant("factors r64", make_factors(64), RANDOM_GRIDS),
    Variant("slora r4 outputs", make_slora(RANK, "outputs"), near="slora r4 weights"),
    Variant("slora r4 loss", make_slora(RANK, "loss"), near="slora r4 weights"),
    Variant("slora r4 outputs fold", make_slora(RANK, "outputs", "fold"), near="slora r4 weights"),
    Variant("slora r4 outputs keep", make_slora(RANK, "outputs", "keep"), near="slora r4 weights"),
    Variant("slora r64 outputs", make_slora(64, "outputs"), near=WIDE_SLORA),
    Variant("slora r128 weights", make_slora(128, "weights"), near=WIDE_SLORA),
    Variant("slora r128 loss", make_slora(128, "loss"), near=WIDE_SLORA),
    Variant("slora r128 outputs fold", make_slora(128, "outputs", "fold"), near=WIDE_SLORA),
    Variant("pissa r4", make_lora(RANK, init="pissa"), SMALL_GRIDS),
    Variant("peft pissa r4", make_lora(RANK), like="pissa r4", peft="pissa"),
    Variant("peft dora r4", make_lora(RANK), near="lora r4", peft="dora"),
    # B alone is trained, at twice the rank for about the same count.
    Variant("peft ffa-lora r8", make_lora(2 * RANK), LORA_GRIDS, peft="ffa"),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}


def shift_rate(rate: float, steps: int) -> float:
    """Return the rate so many steps further on the ladder, or its end."""
    return LADDER[min(max(LADDER.index(rate) + steps, 0), len(LADDER) - 1)]
