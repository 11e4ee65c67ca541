"""Select the best candidates of all layers, holding at most twice as many as there are slots."""

from __future__ import annotations

import torch
from torch import Tensor


class CandidatePool:
    """A running selection. Ties go to the earlier layer, then to the lower position."""

    def __init__(self, capacity: int, *, max_per_layer: int | None) -> None:
        self._capacity, self._max_per_layer = capacity, max_per_layer
        self._names: list[str] = []
        self._scores = torch.empty(0)
        self._layers = torch.empty(0, dtype=torch.int64)
        self._positions = torch.empty(0, dtype=torch.int64)

    def offer(self, name: str, scores: Tensor) -> None:
        """Add a layer's candidates, float32 `[n]`; at most `max_per_layer` of them can win."""
        layer = len(self._names)
        self._names.append(name)
        limit = min(scores.numel(), self._capacity, self._max_per_layer or scores.numel())
        order = torch.sort(scores, descending=True, stable=True).indices[:limit]
        self._scores = torch.cat((self._scores, scores[order]))
        self._positions = torch.cat((self._positions, order))
        self._layers = torch.cat((self._layers, torch.full((limit,), layer, dtype=torch.int64)))
        self._retain(self._find_winners())

    def select_positions(self) -> dict[str, Tensor]:
        """Return the selected positions by layer, ascending; every layer has at least one."""
        return {
            name: self._positions[self._layers == layer].sort().values
            for layer, name in enumerate(self._names)
        }

    def _find_winners(self) -> Tensor:
        """Return ascending indices: the best candidate of each layer, then the best others."""
        is_layer_best = torch.ones_like(self._layers, dtype=torch.bool)
        is_layer_best[1:] = self._layers[1:] != self._layers[:-1]
        # The candidates of a layer are adjacent and descending, so its first one is its best.
        layer_best = is_layer_best.nonzero().squeeze(1)
        rest = (~is_layer_best).nonzero().squeeze(1)
        free_slots = max(0, self._capacity - layer_best.numel())
        best = torch.sort(self._scores[rest], descending=True, stable=True).indices[:free_slots]
        return torch.cat((layer_best, rest[best])).sort().values

    def _retain(self, indices: Tensor) -> None:
        self._scores = self._scores[indices]
        self._layers = self._layers[indices]
        self._positions = self._positions[indices]
