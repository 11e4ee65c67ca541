"""The hand-off of one run, recorded: from sparse values to the inits of the low-rank stage."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from jobs.train.comm.collectives import WorkerContext
from jobs.train.method.low_rank_start import LayerHandoff, compute_handoff
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.monitor.recorder import RunRecorder
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.sketch import LayerSketch


@dataclasses.dataclass(frozen=True)
class HandoffShares:
    """What the factors of all layers retain of the update."""

    energy_share: float
    """Share of the energy of its entries."""
    output_share: float | None
    """Share of the energy of the layers' outputs, on average over the layers; None if the hand-off
    has not looked at them."""

    def describe(self) -> dict[str, float]:
        """Return the shares that are known, as the ledger has them."""
        shares = {
            "handoff_energy_share": self.energy_share,
            "handoff_output_share": self.output_share,
        }
        return {name: share for name, share in shares.items() if share is not None}


def run_handoff(
    updates: SparseUpdates,
    context: WorkerContext,
    recorder: RunRecorder,
    *,
    make_sketches: Callable[[], Mapping[str, LayerSketch]],
) -> tuple[dict[str, LowRankInit], HandoffShares]:
    """Return each layer's init, and what they retain of the update. A collective.

    `make_sketches` runs over the calibration sequences if the norm needs them.
    """
    start_time = time.monotonic()
    sketches = make_sketches()
    progress = recorder.track_progress("hand-off, layers", len(updates.masks))
    inits, layers = compute_handoff(updates, context, on_layer=progress.advance, sketches=sketches)
    shares = _sum_shares(layers)
    recorder.emit_event(
        "handoff",
        norm=updates.method.handoff.norm,
        energy_share=shares.energy_share,
        output_share=shares.output_share,
        seconds=time.monotonic() - start_time,
        layers=[dataclasses.asdict(layer) for layer in layers],
    )
    return inits, shares


def _sum_shares(layers: Sequence[LayerHandoff]) -> HandoffShares:
    energies = [layer.norm**2 for layer in layers]
    retained = sum(
        layer.energy_share * energy for layer, energy in zip(layers, energies, strict=True)
    )
    outputs = [layer.output_share for layer in layers if layer.output_share is not None]
    return HandoffShares(
        energy_share=retained / sum(energies) if sum(energies) else 1.0,
        output_share=statistics.fmean(outputs) if outputs else None,
    )
