"""The rule behind `train.learning_rate: auto`. No torch.

    rate = BASE[form, family] * (2000 / hidden) ** 0.781 / share ** POWER[form] * FACTOR

`form` is what is trained: entries of the weights (full fine-tuning, sparse values) or factors
(LoRA). `share` is the part of them that is trained: the density of a mask of the weights, or of A
and B. Every constant is a geometric mean over measured grids (docs/measured/rates.json);
`python -m tests.benchmarks.rates` fits them again. Its errors: docs/guides/rates.md.

Sources: the law of the width is Tinker's for Llama, and not fitted here; 1 / share for entries and
1 / sqrt(share) for factors are what the grids show, rounded to these powers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["entries", "factors"]
Family = Literal["classifier", "language model"]

REFERENCE_WIDTH, WIDTH_POWER = 2000, 0.781
BASE: dict[tuple[Form, Family], float] = {
    ("entries", "classifier"): 8.1e-5,
    ("entries", "language model"): 4.3e-5,
    ("factors", "classifier"): 8.3e-4,
    ("factors", "language model"): 1.2e-3,
}
POWER: dict[Form, float] = {"entries": 1.0, "factors": 0.5}
FACTOR = {"chosen": 0.14, "structured": 0.33, "initialised": 0.41}
"""chosen: entries with the largest gradients, which all pull. structured: rows, columns, blocks.
initialised: factors from PiSSA or LoRA-GA."""
CHOSEN, STRUCTURED = ("gradient", "fisher", "snip"), ("rows", "columns", "blocks")
MAX_RATE = 4e-2
"""Largest rate at which any training here converged; the rule stops there."""
HEAD_RATE, HEAD_WIDTH = 2e-2, 384
"""A new head's rate up to this width; above it falls as 1 / width, as its outputs grow with it."""


@dataclass(frozen=True)
class RateSubject:
    """What a stage trains, as far as its rate depends on it."""

    form: Form
    family: Family
    hidden: int
    """Width of the model's hidden states."""
    share: float = 1.0
    """Density of the mask: of the weights' entries, or of the factors'."""
    factor: str | None = None
    """A key of FACTOR, or None."""


def compute_width_law(hidden: int) -> float:
    """Return the factor of the width: 1 at 2000."""
    return float((REFERENCE_WIDTH / hidden) ** WIDTH_POWER)


def compute_rule_rate(subject: RateSubject) -> float:
    """Return the peak learning rate of AdamW, rounded to two digits."""
    rate = BASE[subject.form, subject.family] * compute_width_law(subject.hidden)
    rate /= subject.share ** POWER[subject.form]
    if subject.factor is not None:
        rate *= FACTOR[subject.factor]
    return round_rate(min(rate, MAX_RATE))


def compute_head_rate(hidden: int) -> float:
    """Return the peak learning rate of a new head."""
    return round_rate(HEAD_RATE * min(1.0, HEAD_WIDTH / hidden))


def find_mask_factor(mask: str) -> str | None:
    """Return the factor of a mask strategy; an installed one counts as random."""
    if mask in CHOSEN:
        return "chosen"
    return "structured" if mask in STRUCTURED else None


def round_rate(rate: float) -> float:
    """Return a rate with two significant digits."""
    return float(f"{rate:.1e}")
