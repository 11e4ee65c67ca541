"""The hand-off of one run, recorded: from sparse values to the inits of the low-rank stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from torch import Tensor

from jobs.spec.schema import RunSpec
from jobs.train.comm.collectives import WorkerContext
from jobs.train.method.low_rank_start import compute_handoff
from jobs.train.monitor.recorder import RunRecorder
from slora.handoff.low_rank_init import LowRankInit
from slora.masks.mask import Mask


def run_handoff(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    spec: RunSpec,
    context: WorkerContext,
    recorder: RunRecorder,
) -> tuple[dict[str, LowRankInit], float]:
    """Return each layer's init, and their share of the update's energy. A collective."""
    start_time = time.monotonic()
    progress = recorder.track_progress("hand-off, layers", len(masks))
    inits, layers = compute_handoff(
        weights, masks, spec.method, context, seed=spec.train.seed, on_layer=progress.advance
    )
    energies = [layer.norm**2 for layer in layers]
    retained = sum(
        layer.energy_share * energy for layer, energy in zip(layers, energies, strict=True)
    )
    energy_share = retained / sum(energies) if sum(energies) else 1.0
    recorder.emit_event(
        "handoff",
        energy_share=energy_share,
        seconds=time.monotonic() - start_time,
        layers=[dataclasses.asdict(layer) for layer in layers],
    )
    return inits, energy_share
