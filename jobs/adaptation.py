"""What the method does to one run's model, stage by stage: masks, layers, hand-off, pruning.

Knows the spec's method and the plain model; knows no loop and no DeepSpeed but through an engine's
weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from jobs import stages, starts
from jobs.base_shards import whole, writable
from jobs.engine import Engine
from jobs.handoff import handed_over
from jobs.masking import load_masks, make_masks, mask_request
from jobs.record import Record
from jobs.spec import Spec
from jobs.store.runs import RunStore
from jobs.team import CALIBRATION, Team
from jobs.warm_start import WarmStart
from slora.adapt import adapted, factors_of, remove
from slora.calibrate import groups, layer_gradients, layer_scores
from slora.factor_mask import SparseFactorLinear, masked
from slora.gates import GatedLoraLinear, importance, shrink, survivors
from slora.mask import Mask
from slora.masks.choose import choose_masks, needed
from slora.masks.scorer import Scorer
from slora.plain import features
from slora.start import Start

PRUNINGS = 20
"""How often in a low-rank stage gates are shrunk; each costs one exchange of a few numbers."""
Scores = Iterator[tuple[str, Tensor]]
Scored = Callable[[Scorer, Callable[[], Scores]], Scores]
"""Gives a score's values by layer: computes them, or has them already."""
Calibrate = Callable[[int], Callable[[], int]]
"""Makes what `slora.calibrate` runs so many times: one pass over the calibration sequences."""


class Adaptation:
    """The method in one run. Every rank has one, and all are alike."""

    def __init__(
        self,
        spec: Spec,
        model: nn.Module,
        targets: Mapping[str, Any],
        runs: RunStore,
        team: Team,
        *,
        record: Record,
        calibrate: Calibrate,
        scored: Scored,
        resumed: bool,
        warm: WarmStart | None = None,
    ) -> None:
        self._warm = warm
        self._spec, self._method, self._seed = spec, spec.method, spec.train.seed
        self._model, self._targets, self._runs, self._team = model, dict(targets), runs, team
        self._record, self._calibrate = record, calibrate
        self._scored, self._resumed = scored, resumed
        self.shapes = {name: features(layer) for name, layer in targets.items()}
        self.kept: float | None = None
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.taken_out: dict[str, tuple[Tensor, Tensor]] = {}
        self.masks: dict[str, Mask] | None = None
        self.starts: dict[str, Start] | None = None

    def install_sparse(self) -> None:
        """The sparse stage's layers, on masks that are drawn, chosen, read back or gone on with."""
        stages.start_sparse(self._model, self._masks())
        if self._warm is not None:
            values = {f"{name}.values": values for name, values in self._warm.values.items()}
            stages.load_weights(self._model, values)

    def install_low_rank(self, weights: Mapping[str, Tensor], *, first: bool, done: bool) -> None:
        """The low-rank stage's layers; `first` in the run, or `done` in part by an earlier try.

        `weights` are those of the sparse stage where there was one.
        """
        if self.starts is None:
            self.starts = self._starts(weights, first=first, done=done)
        needs_masks = any(start.residual is not None for start in self.starts.values())
        masks = self._masks() if needs_masks else None
        stages.start_low_rank(
            self._model, self.starts, masks, self._method, seed=self._seed, writable=writable
        )

    def prune(self, engine: Engine, step: int, steps: int) -> None:
        """Shrinks the gates, where it is time; a collective then."""
        if not self.prunes_at(step, steps):
            return
        keep = survivors(
            step, steps=steps, rank=self._method.rank, density=self._method.factor_density
        )
        weights = engine.weights()
        shrunk = {}
        for name, layer in self._gates():
            gate = weights[f"{name}.gate_R"]
            factors = weights[f"{name}.a_RI"], weights[f"{name}.b_OR"]
            gate = shrink(gate, importance(gate * layer.open_R.cpu(), *factors), keep=keep)
            layer.open_R.copy_(gate != 0)
            shrunk[f"{name}.gate_R"] = gate
        engine.write(shrunk)

    def prunes_at(self, step: int, steps: int) -> bool:
        """Whether gates are shrunk after this step of the stage."""
        return self._gated and step % max(1, steps // PRUNINGS) == 0

    def settled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights as the model computes with them: a closed gate is zero.

        An optimiser's momentum moves it on, where it has no effect; saved so, it would open again.
        """
        found = dict(weights)
        for name, layer in self._gates():
            found[f"{name}.gate_R"] = found[f"{name}.gate_R"] * layer.open_R.cpu().float()
        return found

    def reopen(self, weights: Mapping[str, Tensor]) -> None:
        """After saved weights were put back: what was pruned stays so."""
        for name, layer in self._gates():
            layer.open_R.copy_(weights[f"{name}.gate_R"] != 0)

    def uninstall(self, weights: Mapping[str, Tensor]) -> None:
        """The plain layers again; of a low-rank stage's `weights`, the plain factors are kept."""
        self.factors = factors_of(weights, self._model)
        self.taken_out = self._taken_out()
        remove(self._model, writable=writable)

    def _taken_out(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors that were taken out of each weight when the stage began, as they were."""
        found = {}
        for name, layer in adapted(self._model):
            start = (self.starts or {}).get(name)
            if start is None or not start.minus:
                continue
            a_RI, b_OR = start.a_RI, start.b_OR
            if isinstance(layer, SparseFactorLinear):
                density = self._method.factor_density
                a_RI, b_OR = masked(a_RI, b_OR, density, self._seed, name)
            found[name] = (a_RI, b_OR)
        return found

    @property
    def _gated(self) -> bool:
        return self._method.factor_density < 1 and self._method.factor_pruning == "gates"

    def _gates(self) -> Iterator[tuple[str, GatedLoraLinear]]:
        for name, layer in adapted(self._model):
            if isinstance(layer, GatedLoraLinear):
                yield name, layer

    def _computed(self, scorer: Scorer) -> Scores:
        run = self._calibrate(self._passes())
        return layer_scores(self._targets, scorer, run, whole=whole, over_ranks=self._over_ranks)

    def _passes(self) -> int:
        return sum(1 for _ in groups(self._targets))

    def _over_ranks(self, total: Tensor) -> Tensor:
        return self._team.wire.all_reduce(total, CALIBRATION)

    def _masks(self) -> dict[str, Mask]:
        if self.masks is None and self._warm is not None:
            self.masks = dict(self._warm.masks)
        if self.masks is None:
            self.masks = (load_masks(self._runs, self.shapes) if self._resumed else None) or (
                self._made_masks()
            )
        return self.masks

    def _made_masks(self) -> dict[str, Mask]:
        request = mask_request(self._method, seed=self._seed)
        scorer = needed(request)
        if scorer is None:
            return choose_masks(self.shapes, request)
        began = time.monotonic()
        self._record.event("scoring", strategy=request.mask, score=scorer.name)
        scores = self._scored(scorer, lambda: self._computed(scorer))
        masks = make_masks(self.shapes, request, scores, self._runs, writes=self._team.rank == 0)
        seconds = time.monotonic() - began
        self._record.event("masked", strategy=request.mask, score=scorer.name, seconds=seconds)
        return masks

    def _starts(
        self, weights: Mapping[str, Tensor], *, first: bool, done: bool
    ) -> dict[str, Start]:
        method = self._method
        if first and self._warm is not None:
            return {name: self._warm.starts[name] for name in self.shapes}
        plain = first and method.init == "zero"
        if plain:
            return starts.own_starts(self.shapes, method, seed=self._seed)
        if done:
            return starts.load_starts(self._runs)
        if not first:
            masks = self._masks()
            made, self.kept = handed_over(weights, masks, self._spec, self._team, self._record)
        elif method.init == "pissa":
            pace = self._record.pace("the layers' singular vectors", len(self.shapes))
            made = starts.starts_from_weights(self._targets, method, self._team, pace.seen)
        else:
            run = self._calibrate(self._passes())
            gradients = layer_gradients(self._targets, run, over_ranks=self._over_ranks)
            pace = self._record.pace("the gradients' singular vectors", len(self.shapes))
            made = starts.starts_from_gradients(
                gradients, method, self._team, seed=self._seed, seen=pace.seen
            )
        if self._team.rank == 0:
            starts.save_starts(self._runs, made)
        return made


def trained_count(model: nn.Module) -> int:
    """Parameters that the method trains in the model as it stands, without a head."""
    return sum(p.numel() for _, layer in adapted(model) for p in layer.parameters(recurse=False)
               if p.requires_grad)  # fmt: skip
