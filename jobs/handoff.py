"""The hand-off of one run, told: from values and masks to where the low-rank stage starts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from torch import Tensor

from jobs.record import Record
from jobs.spec import Spec
from jobs.starts import hand_over
from jobs.team import Team
from slora.mask import Mask
from slora.start import Start


def handed_over(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    spec: Spec,
    team: Team,
    record: Record,
) -> tuple[dict[str, Start], float]:
    """Each layer's start, and what share of the energy they hold, recorded. A collective."""
    began = time.monotonic()
    pace = record.pace("hand-off, layers", len(masks))
    made, told = hand_over(weights, masks, spec.method, team, seed=spec.train.seed, seen=pace.seen)
    energy = [layer.norm**2 for layer in told]
    held = sum(layer.kept * e for layer, e in zip(told, energy, strict=True))
    kept = held / sum(energy) if sum(energy) else 1.0
    record.event(
        "handoff",
        kept=kept,
        seconds=time.monotonic() - began,
        layers=[dataclasses.asdict(layer) for layer in told],
    )
    return made, kept
