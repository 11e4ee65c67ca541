"""The stage that is installed in a site's base: its layers, layout and masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jobs.federation.averaging.flat_layout import VectorLayout, make_layout, to_bytes
from jobs.federation.sites.messages import StageInfo, StagePayload
from jobs.store.runs.run_store import RunStore
from jobs.train.method.low_rank_start import make_lora_inits, unpack_inits
from jobs.train.method.masks import make_mask_request, pack_masks, unpack_masks
from jobs.train.method.runner import MethodRunner, load_weights
from jobs.train.method.settle_kernels import settle_kernels
from jobs.train.model.base_model import is_within
from jobs.train.request import FederationRequest
from slora.layers.base_layers import get_features
from slora.layers.install import iter_adapter_layers, remove_layers
from slora.layers.sparse_factors import SparseFactorLinear
from slora.masks.mask import Mask
from slora.masks.scoring import score_layers
from slora.masks.selection import choose_masks, find_scorer

A_PARAMETERS = ("a_RI", "a_values")
"""Names of the factor A in a layer: dense, or under a mask of its own."""


class SiteStage:
    """Installs the stages of one run in turn. All sites install the same."""

    def __init__(
        self,
        request: FederationRequest,
        runs: RunStore,
        model: nn.Module,
        targets: Mapping[str, Any],
    ) -> None:
        self._runs = runs
        self._spec, self._plan, self._model = request.spec, request.plan, model
        self._freezes_a, self._targets = request.federation.freeze_a, targets
        self.shapes = {name: get_features(layer) for name, layer in targets.items()}
        self.method = MethodRunner(self._spec, model, self.shapes)
        self.index = -1
        """Of the stage in the plan; -1 if none is installed."""
        self.layout, self.digest = VectorLayout((), ()), ""
        self._masks: dict[str, Mask] | None = None

    def install(self, index: int, payload: StagePayload) -> None:
        """Install a stage in place of the one before."""
        self.remove()
        name = self._plan.stages[index].name
        masks = self._get_masks(payload) if self._needs_masks(name) else None
        if name == "sparse":
            assert masks is not None
            self.method.install_sparse(masks)
            settle_kernels(self._model, self._spec, self._runs)
        elif name == "low-rank":
            self._install_low_rank(payload, masks)
        trainable, head = self._get_trainable(), self._plan.head_modules
        self.layout = make_layout(trainable, [one for one in trainable if is_within(one, head)])
        digests = "".join(mask.digest() for mask in masks.values()) if masks else ""
        self.digest = self.layout.digest(digests + self._digest_factor_masks())
        self.index = index

    def describe(self, payload: StagePayload) -> StageInfo:
        """Return what must be equal on all sides, and masks that the server can't make."""
        masks = b""
        is_sparse = self._plan.stages[self.index].name == "sparse"
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        if is_sparse and not payload.masks and self._masks and find_scorer(request) is not None:
            masks = pack_masks(self._masks)
        initial_weights = to_bytes(self.layout.flatten(self._get_trainable()))
        return StageInfo(self.layout, initial_weights, masks, self.digest)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the stage's layers."""
        load_weights(self._model, weights)

    def get_frozen_factors(self) -> dict[str, Tensor]:
        """Return the factors A that are not trained; empty if they are."""
        if not self._freezes_a:
            return {}
        return {
            f"{name}.{part}": getattr(layer, part).detach().float().cpu()
            for name, layer in iter_adapter_layers(self._model)
            for part in A_PARAMETERS
            if hasattr(layer, part)
        }

    def uninstall(self, weights: Mapping[str, Tensor]) -> None:
        """Put the base layers back and keep what publishing needs of the stage's weights."""
        if self._spec.method.kind != "full":
            self.method.uninstall(weights)
        self.index = -1

    def remove(self) -> None:
        """Put the base layers back."""
        remove_layers(self._model)
        self.index = -1

    def _install_low_rank(self, payload: StagePayload, masks: dict[str, Mask] | None) -> None:
        # Without sent factors these are placeholders: the weights contain the factors.
        inits = (
            unpack_inits(payload.inits)
            if payload.inits
            else make_lora_inits(self.shapes, self._spec.method, seed=self._spec.train.seed)
        )
        has_residuals = any(init.residual is not None for init in inits.values())
        self.method.install_low_rank(inits, masks if has_residuals else None)
        if self._freezes_a:
            for _, layer in iter_adapter_layers(self._model):
                for part in A_PARAMETERS:
                    if hasattr(layer, part):
                        getattr(layer, part).requires_grad_(False)

    def _digest_factor_masks(self) -> str:
        """Return a digest of the masks of A and B in all layers; empty without such masks."""
        return "".join(
            hashlib.sha256(positions.cpu().numpy().tobytes()).hexdigest()
            for _, layer in iter_adapter_layers(self._model)
            if isinstance(layer, SparseFactorLinear)
            for positions in (layer.a_positions, layer.b_positions)
        )

    def _needs_masks(self, stage_name: str) -> bool:
        """Return whether a stage has masks: to train on, or for the residual of a hand-off."""
        method = self._spec.method
        return stage_name == "sparse" or (
            method.kind == "slora" and method.handoff.residual != "drop"
        )

    def _get_masks(self, payload: StagePayload) -> dict[str, Mask]:
        """Return the run's masks: from the payload, or made from the seed or the base."""
        if self._masks is None:
            self._masks = (
                unpack_masks(payload.masks, self.shapes) if payload.masks else self._make_masks()
            )
        return self._masks

    def _make_masks(self) -> dict[str, Mask]:
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = find_scorer(request)
        scores = None if scorer is None else score_layers(self._targets, scorer, lambda: 0)
        return choose_masks(self.shapes, request, scores)

    def _get_trainable(self) -> dict[str, Tensor]:
        return {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
