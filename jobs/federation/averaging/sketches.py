"""Sum the sketches that clients send for the hand-off.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from jobs.federation.sites.messages import ClientSketches
from slora.handoff.sketch import LayerSketch

FLOAT32 = 4


def explain_unusable_sketches(
    reply: ClientSketches, sketches: Mapping[str, LayerSketch]
) -> str | None:
    """Return why a client's sketches are invalid for the server's empty ones, or None."""
    expected_size = FLOAT32 * sum(sketch.pack().numel() for sketch in sketches.values())
    if len(reply.sketches) != expected_size:
        return f"{len(reply.sketches):,} bytes of sketches instead of {expected_size:,}"
    if not np.isfinite(np.frombuffer(reply.sketches, "<f4")).all():
        return "a sketch is not a finite number"
    return None


def fill_sketches(replies: Sequence[ClientSketches], sketches: Mapping[str, LayerSketch]) -> None:
    """Fill the empty sketches with the sums of valid replies: every token counts the same."""
    total = torch.zeros(len(replies[0].sketches) // FLOAT32, dtype=torch.float64)
    for reply in sorted(replies, key=lambda reply: reply.client):
        total += torch.from_numpy(np.frombuffer(reply.sketches, "<f4").astype(np.float64))
    sizes = [sketch.pack().numel() for sketch in sketches.values()]
    for sketch, part in zip(sketches.values(), torch.split(total.float(), sizes), strict=True):
        sketch.unpack(part)
