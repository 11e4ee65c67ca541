"""What the method does to one run's model, stage by stage: masks, layers, hand-off, pruning.

Knows the spec's method and the plain model; knows no loop and no DeepSpeed but through an engine's
weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from jobs.spec.schema import RunSpec
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import CALIBRATION, WorkerContext
from jobs.train.engine.engine import Engine
from jobs.train.method import low_rank_start, stages
from jobs.train.method.handoff import run_handoff
from jobs.train.method.masks import load_masks, make_mask_request, make_masks
from jobs.train.method.warm_start import WarmStart
from jobs.train.model.base_shards import gather_for_reading, gather_for_writing
from jobs.train.monitor.recorder import RunRecorder
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.base_layers import get_features
from slora.layers.gates import GatedLoraLinear, count_open_gates, measure_importance, shrink_gates
from slora.layers.install import extract_factors, iter_adapter_layers, remove_layers
from slora.layers.sparse_factors import SparseFactorLinear, apply_factor_masks
from slora.masks.mask import Mask
from slora.masks.scoring import compute_mean_gradients, group_layers, score_layers
from slora.masks.selection import choose_masks, find_scorer
from slora.masks.strategy import Scorer

PRUNINGS_PER_STAGE = 20
"""How often in a low-rank stage gates are shrunk; each costs one exchange of a few numbers."""
Scores = Iterator[tuple[str, Tensor]]
ScoreProvider = Callable[[Scorer, Callable[[], Scores]], Scores]
"""Gives a score's values by layer: computes them, or has them already."""
CalibrationFactory = Callable[[int], Callable[[], int]]
"""Makes what `slora.masks.scoring` runs so many times: one pass over the calibration sequences."""


class MethodRunner:
    """The method in one run. Every rank has one, and all are alike."""

    def __init__(
        self,
        spec: RunSpec,
        model: nn.Module,
        targets: Mapping[str, Any],
        runs: RunStore,
        context: WorkerContext,
        *,
        recorder: RunRecorder,
        make_calibration: CalibrationFactory,
        provide_scores: ScoreProvider,
        resumed: bool,
        warm_start: WarmStart | None = None,
    ) -> None:
        self._warm_start = warm_start
        self._spec, self._method, self._seed = spec, spec.method, spec.train.seed
        self._model, self._targets, self._runs, self._context = model, dict(targets), runs, context
        self._recorder, self._make_calibration = recorder, make_calibration
        self._provide_scores, self._resumed = provide_scores, resumed
        self.shapes = {name: get_features(layer) for name, layer in targets.items()}
        self.retained_energy: float | None = None
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.subtracted_factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.masks: dict[str, Mask] | None = None
        self.inits: dict[str, LowRankInit] | None = None

    def install_sparse(self) -> None:
        """The sparse stage's layers, on masks that are drawn, chosen, read back or gone on with."""
        stages.install_sparse_stage(self._model, self._get_masks())
        if self._warm_start is not None:
            values = {f"{name}.values": values for name, values in self._warm_start.values.items()}
            stages.load_weights(self._model, values)

    def install_low_rank(
        self, weights: Mapping[str, Tensor], *, is_first: bool, resumed: bool
    ) -> None:
        """The low-rank stage's layers; `first` in the run, or `done` in part by an earlier try.

        `weights` are those of the sparse stage where there was one.
        """
        if self.inits is None:
            self.inits = self._make_inits(weights, is_first=is_first, resumed=resumed)
        needs_masks = any(init.residual is not None for init in self.inits.values())
        masks = self._get_masks() if needs_masks else None
        stages.install_low_rank_stage(
            self._model,
            self.inits,
            masks,
            self._method,
            seed=self._seed,
            gather_for_writing=gather_for_writing,
        )

    def prune(self, engine: Engine, step: int, steps: int) -> None:
        """Shrinks the gates, where it is time; a collective then."""
        if not self.should_prune(step, steps):
            return
        keep = count_open_gates(
            step, steps=steps, rank=self._method.rank, density=self._method.factor_density
        )
        weights = engine.gather_weights()
        shrunk = {}
        for name, layer in self._iterate_gates():
            gate = weights[f"{name}.gate_R"]
            factors = weights[f"{name}.a_RI"], weights[f"{name}.b_OR"]
            gate = shrink_gates(
                gate, measure_importance(gate * layer.open_R.cpu(), *factors), keep=keep
            )
            layer.open_R.copy_(gate != 0)
            shrunk[f"{name}.gate_R"] = gate
        engine.write_weights(shrunk)

    def should_prune(self, step: int, steps: int) -> bool:
        """Whether gates are shrunk after this step of the stage."""
        return self._has_gates and step % max(1, steps // PRUNINGS_PER_STAGE) == 0

    def compute_effective_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights as the model computes with them: a closed gate is zero.

        An optimiser's momentum moves it on, where it has no effect; saved so, it would open again.
        """
        effective = dict(weights)
        for name, layer in self._iterate_gates():
            effective[f"{name}.gate_R"] = effective[f"{name}.gate_R"] * layer.open_R.cpu().float()
        return effective

    def restore_gates(self, weights: Mapping[str, Tensor]) -> None:
        """After saved weights were put back: what was pruned stays so."""
        for name, layer in self._iterate_gates():
            layer.open_R.copy_(weights[f"{name}.gate_R"] != 0)

    def uninstall(self, weights: Mapping[str, Tensor]) -> None:
        """The plain layers again; of a low-rank stage's `weights`, the plain factors are kept."""
        self.factors = extract_factors(weights, self._model)
        self.subtracted_factors = self._collect_subtracted_factors()
        remove_layers(self._model, writable=gather_for_writing)

    def _collect_subtracted_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors that were taken out of each weight when the stage began, as they were."""
        subtracted = {}
        for name, layer in iter_adapter_layers(self._model):
            init = (self.inits or {}).get(name)
            if init is None or not init.subtract_from_base:
                continue
            a_RI, b_OR = init.a_RI, init.b_OR
            if isinstance(layer, SparseFactorLinear):
                density = self._method.factor_density
                a_RI, b_OR = apply_factor_masks(a_RI, b_OR, density, self._seed, name)
            subtracted[name] = (a_RI, b_OR)
        return subtracted

    @property
    def _has_gates(self) -> bool:
        return self._method.factor_density < 1 and self._method.factor_pruning == "gates"

    def _iterate_gates(self) -> Iterator[tuple[str, GatedLoraLinear]]:
        for name, layer in iter_adapter_layers(self._model):
            if isinstance(layer, GatedLoraLinear):
                yield name, layer

    def _compute_scores(self, scorer: Scorer) -> Scores:
        calibrate = self._make_calibration(self._count_passes())
        return score_layers(
            self._targets,
            scorer,
            calibrate,
            gathered=gather_for_reading,
            sum_over_ranks=self._sum_over_ranks,
        )

    def _count_passes(self) -> int:
        return sum(1 for _ in group_layers(self._targets))

    def _sum_over_ranks(self, total: Tensor) -> Tensor:
        return self._context.collectives.all_reduce(total, CALIBRATION)

    def _get_masks(self) -> dict[str, Mask]:
        if self.masks is None and self._warm_start is not None:
            self.masks = dict(self._warm_start.masks)
        if self.masks is None:
            self.masks = (load_masks(self._runs, self.shapes) if self._resumed else None) or (
                self._make_masks()
            )
        return self.masks

    def _make_masks(self) -> dict[str, Mask]:
        request = make_mask_request(self._method, seed=self._seed)
        scorer = find_scorer(request)
        if scorer is None:
            return choose_masks(self.shapes, request)
        start_time = time.monotonic()
        self._recorder.emit_event("scoring", strategy=request.mask, score=scorer.name)
        scores = self._provide_scores(scorer, lambda: self._compute_scores(scorer))
        masks = make_masks(self.shapes, request, scores, self._runs, writes=self._context.rank == 0)
        seconds = time.monotonic() - start_time
        self._recorder.emit_event(
            "masked", strategy=request.mask, score=scorer.name, seconds=seconds
        )
        return masks

    def _make_inits(
        self, weights: Mapping[str, Tensor], *, is_first: bool, resumed: bool
    ) -> dict[str, LowRankInit]:
        method = self._method
        if is_first and self._warm_start is not None:
            return {name: self._warm_start.inits[name] for name in self.shapes}
        is_lora_init = is_first and method.init == "zero"
        if is_lora_init:
            return low_rank_start.make_lora_inits(self.shapes, method, seed=self._seed)
        if resumed:
            return low_rank_start.load_inits(self._runs)
        if not is_first:
            masks = self._get_masks()
            inits, self.retained_energy = run_handoff(
                weights, masks, self._spec, self._context, self._recorder
            )
        elif method.init == "pissa":
            progress = self._recorder.track_progress(
                "the layers' singular vectors", len(self.shapes)
            )
            inits = low_rank_start.make_pissa_inits(
                self._targets, method, self._context, progress.advance
            )
        else:
            calibrate = self._make_calibration(self._count_passes())
            gradients = compute_mean_gradients(
                self._targets, calibrate, sum_over_ranks=self._sum_over_ranks
            )
            progress = self._recorder.track_progress(
                "the gradients' singular vectors", len(self.shapes)
            )
            inits = low_rank_start.make_gradient_inits(
                gradients, method, self._context, seed=self._seed, on_layer=progress.advance
            )
        if self._context.rank == 0:
            low_rank_start.save_inits(self._runs, inits)
        return inits


def count_trainable(model: nn.Module) -> int:
    """Parameters that the method trains in the model as it stands, without a head."""
    return sum(parameter.numel() for _, layer in iter_adapter_layers(model) for parameter in layer.parameters(recurse=False)
               if parameter.requires_grad)  # fmt: skip
