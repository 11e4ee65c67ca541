"""The masks and inits of a fine-tuning's stages: made, read back, or inherited from a parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from jobs.spec.schema import RunSpec
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import CALIBRATION, HANDOFF, WorkerContext
from jobs.train.hooks import RunHooks, Scores
from jobs.train.method import low_rank_start
from jobs.train.method.handoff import HandoffShares, run_handoff
from jobs.train.method.handoff_sketches import SketchPassFactory, collect_sketches
from jobs.train.method.masks import load_masks, make_mask_request, make_masks
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.method.warm_start import WarmStart
from jobs.train.model.shard_access import gather_for_reading
from jobs.train.monitor.recorder import RunRecorder
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.sketch import LayerSketch
from slora.layers.base_layers import get_features
from slora.masks.mask import Mask
from slora.masks.scoring import compute_mean_gradients, group_layers, score_layers
from slora.masks.selection import choose_masks, find_scorer
from slora.masks.strategy import Scorer

CalibrationFactory = Callable[[int], Callable[[], int]]
"""Given the number of passes: a function that runs one pass over the calibration sequences."""


class StageInputs:
    """Makes the masks and inits of one run. Every rank makes the same."""

    def __init__(
        self,
        spec: RunSpec,
        model: nn.Module,
        targets: Mapping[str, Any],
        runs: RunStore,
        context: WorkerContext,
        *,
        recorder: RunRecorder,
        hooks: RunHooks,
        make_calibration: CalibrationFactory,
        make_sketch_pass: SketchPassFactory,
        resumed: bool,
        warm_start: WarmStart | None,
    ) -> None:
        self._spec, self._method, self._seed = spec, spec.method, spec.train.seed
        self._targets, self._runs, self._context = dict(targets), runs, context
        self._recorder, self._hooks, self._make_calibration = recorder, hooks, make_calibration
        self._model, self._make_sketch_pass = model, make_sketch_pass
        self._resumed, self._warm_start = resumed, warm_start
        self._masks: dict[str, Mask] | None = None
        self.shapes = {name: get_features(layer) for name, layer in targets.items()}

    def get_masks(self) -> dict[str, Mask]:
        """Return the sparse stage's masks: the parent's, those of an earlier try, or new ones."""
        if self._masks is None:
            saved = load_masks(self._runs, self.shapes) if self._resumed else None
            warm = dict(self._warm_start.masks) if self._warm_start is not None else None
            self._masks = warm if warm is not None else saved or self._make_masks()
        return self._masks

    def get_values(self) -> Mapping[str, Tensor] | None:
        """Return the parent's sparse values, or None if the stage starts at zero."""
        return self._warm_start.values if self._warm_start is not None else None

    def make_inits(
        self, weights: Mapping[str, Tensor], *, is_first: bool, resumed: bool
    ) -> tuple[dict[str, LowRankInit], HandoffShares | None]:
        """Return the low-rank stage's inits, and what a hand-off that made them retained.

        `weights` are those of the sparse stage, unless this stage `is_first`; `resumed` means that
        an earlier try has begun it. A collective.
        """
        method, shares = self._method, None
        if is_first and self._warm_start is not None:
            return {name: self._warm_start.inits[name] for name in self.shapes}, None
        if is_first and method.init == "zero":
            return low_rank_start.make_lora_inits(self.shapes, method, seed=self._seed), None
        if resumed:
            return low_rank_start.load_inits(self._runs), None
        if not is_first:
            updates = SparseUpdates(weights, self.get_masks(), method, self._seed)
            inits, shares = run_handoff(
                updates,
                self._context,
                self._recorder,
                make_sketches=lambda: self._collect_sketches(updates),
            )
        elif method.init == "pissa":
            inits = self._make_pissa_inits()
        else:
            inits = self._make_gradient_inits()
        if self._context.rank == 0:
            low_rank_start.save_inits(self._runs, inits)
        return inits, shares

    def _collect_sketches(self, updates: SparseUpdates) -> dict[str, LayerSketch]:
        return collect_sketches(
            self._model,
            updates,
            self._make_sketch_pass,
            lambda total: self._context.collectives.all_reduce(total, HANDOFF),
        )

    def _make_masks(self) -> dict[str, Mask]:
        request = make_mask_request(self._method, seed=self._seed)
        scorer = find_scorer(request)
        if scorer is None:
            return choose_masks(self.shapes, request)
        start_time = time.monotonic()
        facts = {"strategy": request.mask, "score": scorer.name}
        self._recorder.emit_event("scoring", **facts)
        scores = self._hooks.compute_scores(
            scorer, self.shapes, lambda: self._compute_scores(scorer)
        )
        masks = make_masks(self.shapes, request, scores, self._runs, writes=self._context.rank == 0)
        seconds = time.monotonic() - start_time
        self._recorder.emit_event("masks_selected", **facts, seconds=seconds)
        return masks

    def _compute_scores(self, scorer: Scorer) -> Scores:
        return score_layers(
            self._targets,
            scorer,
            self._calibrate(),
            gathered=gather_for_reading,
            sum_over_ranks=self._sum_over_ranks,
        )

    def _make_pissa_inits(self) -> dict[str, LowRankInit]:
        progress = self._recorder.track_progress("the layers' singular vectors", len(self.shapes))
        return low_rank_start.make_pissa_inits(
            self._targets, self._method, self._context, progress.advance
        )

    def _make_gradient_inits(self) -> dict[str, LowRankInit]:
        gradients = compute_mean_gradients(
            self._targets, self._calibrate(), sum_over_ranks=self._sum_over_ranks
        )
        progress = self._recorder.track_progress(
            "the gradients' singular vectors", len(self.shapes)
        )
        return low_rank_start.make_gradient_inits(
            gradients,
            self.shapes,
            self._method,
            self._context,
            seed=self._seed,
            on_layer=progress.advance,
        )

    def _calibrate(self) -> Callable[[], int]:
        return self._make_calibration(sum(1 for _ in group_layers(self._targets)))

    def _sum_over_ranks(self, total: Tensor) -> Tensor:
        return self._context.collectives.all_reduce(total, CALIBRATION)
