"""The learning rate of a step: a warm-up, then a decay, from the start in each stage."""

from __future__ import annotations

import math


def compute_rate(step: int, *, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """Return the rate of optimizer step `step` (0 is the first) of a stage of `steps`.

    It rises linearly over `warmup * steps` steps, so that no step has a rate of zero; then it falls
    to zero along half a cosine or a line, or stays.
    """
    warmup_steps = math.ceil(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    remaining = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return peak * remaining
