"""The method in a model, stage by stage: install its layers, prune, take them out again.

Knows the spec's method and the plain model, and what to install is given to it: `StageInputs` makes
masks and inits for a fine-tuning, a federation's server sends them to its sites. Knows no loop, and
DeepSpeed only through an engine's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from jobs.spec.schema import RunSpec
from jobs.train.engine.engine import Engine
from jobs.train.method.masks import make_factor_mask_rule
from jobs.train.model.shard_access import gather_for_writing
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.gates import GatedLoraLinear, count_open_gates, measure_importance, shrink_gates
from slora.layers.install import (
    extract_factors,
    install_low_rank,
    install_sparse,
    iter_adapter_layers,
    remove_layers,
)
from slora.layers.token_rows import list_token_rows
from slora.masks.mask import Mask

PRUNINGS_PER_STAGE = 20
"""How often in a low-rank stage gates are shrunk; each costs one exchange of a few numbers."""


class MethodRunner:
    """The method in one run. Every rank has one, and all are alike."""

    def __init__(
        self, spec: RunSpec, model: nn.Module, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        self._method, self._model = spec.method, model
        self.factor_mask = make_factor_mask_rule(spec.method, seed=spec.train.seed)
        self.shapes = dict(shapes)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.subtracted_factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.masks: dict[str, Mask] | None = None
        self.inits: dict[str, LowRankInit] | None = None

    def install_sparse(
        self, masks: Mapping[str, Mask], values: Mapping[str, Tensor] | None = None
    ) -> None:
        """Install the sparse stage's layers: `values` by layer on each mask, zeros without them."""
        self.masks = dict(masks)
        install_sparse(self._model, masks)
        if values:
            load_weights(self._model, {f"{name}.values": v for name, v in values.items()})

    def install_low_rank(
        self, inits: Mapping[str, LowRankInit], masks: Mapping[str, Mask] | None = None
    ) -> None:
        """Install the low-rank stage's layers: factors from `inits`, under masks or gates of their
        own where the spec says so. `masks` hold the residuals of a hand-off that leaves some.
        """
        self.inits = dict(inits)
        if masks is not None:
            self.masks = dict(masks)
        method = self._method
        install_low_rank(
            self._model,
            self.inits,
            scale=method.scale,
            masks=masks,
            factor_mask=self.factor_mask,
            gates=self._has_gates,
            writable=gather_for_writing,
        )

    def prune(self, engine: Engine, step: int, steps: int) -> None:
        """Shrink the gates if that is due after this step; a collective then."""
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
        """Return whether gates are shrunk after this step of the stage."""
        return self._has_gates and step % max(1, steps // PRUNINGS_PER_STAGE) == 0

    def compute_effective_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as the model computes with them: a closed gate is zero.

        The optimizer's momentum still moves a closed gate, without effect; saved like that, it
        would open again.
        """
        effective = dict(weights)
        for name, layer in self._iterate_gates():
            effective[f"{name}.gate_R"] = effective[f"{name}.gate_R"] * layer.open_R.cpu().float()
        return effective

    def restore_gates(self, weights: Mapping[str, Tensor]) -> None:
        """Close the gates that are zero in the saved weights, so that what was pruned stays so."""
        for name, layer in self._iterate_gates():
            layer.open_R.copy_(weights[f"{name}.gate_R"] != 0)

    def uninstall(self, weights: Mapping[str, Tensor]) -> None:
        """Put the base layers back, and keep the plain factors of a low-rank stage's `weights`."""
        self.factors = extract_factors(weights, self._model)
        self.subtracted_factors = self._collect_subtracted_factors()
        remove_layers(self._model, writable=gather_for_writing)

    def _collect_subtracted_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors that were subtracted from each weight when the stage began."""
        inits = self.inits or {}
        return {
            name: (inits[name].a_RI, inits[name].b_OR)
            for name, _ in iter_adapter_layers(self._model)
            if name in inits and inits[name].subtract_from_base
        }

    @property
    def tokens(self) -> dict[str, tuple[int, ...]]:
        """Return the ids of trained embedding rows by the module that holds them."""
        return list_token_rows(self._model)

    @property
    def _has_gates(self) -> bool:
        return self._method.factor_density < 1 and self._method.factor_pruning == "gates"

    def _iterate_gates(self) -> Iterator[tuple[str, GatedLoraLinear]]:
        for name, layer in iter_adapter_layers(self._model):
            if isinstance(layer, GatedLoraLinear):
                yield name, layer


def count_trainable(model: nn.Module) -> int:
    """Return how many parameters the method trains in the model, without a head."""
    return sum(
        parameter.numel()
        for _, layer in iter_adapter_layers(model)
        for parameter in layer.parameters(recurse=False)
        if parameter.requires_grad
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy saved trainable tensors into a model that DeepSpeed does not hold yet."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
