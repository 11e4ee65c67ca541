"""Candidates of all layers for a number of places: never more than twice as many kept."""

from __future__ import annotations

import torch
from torch import Tensor


class Pool:
    """A running contest. Equal scores go to the earlier layer, then to the lower position."""

    def __init__(self, places: int, *, most: int | None) -> None:
        self._places, self._most = places, most
        self._names: list[str] = []
        self._scores = torch.empty(0)
        self._layers = torch.empty(0, dtype=torch.int64)
        self._positions = torch.empty(0, dtype=torch.int64)

    def offer(self, name: str, scores: Tensor) -> None:
        """A layer's candidates, float32 `[n]`; at most `most` of one layer can win."""
        layer = len(self._names)
        self._names.append(name)
        limit = min(scores.numel(), self._places, self._most or scores.numel())
        order = torch.sort(scores, descending=True, stable=True).indices[:limit]
        self._scores = torch.cat((self._scores, scores[order]))
        self._positions = torch.cat((self._positions, order))
        self._layers = torch.cat((self._layers, torch.full((limit,), layer, dtype=torch.int64)))
        self._keep(self._winners())

    def chosen(self) -> dict[str, Tensor]:
        """The winners' positions by layer, ascending; every layer has one at least."""
        return {
            name: self._positions[self._layers == layer].sort().values
            for layer, name in enumerate(self._names)
        }

    def _winners(self) -> Tensor:
        """Indices, ascending: the best of each layer first, then the best of the rest."""
        first = torch.ones_like(self._layers, dtype=torch.bool)
        first[1:] = self._layers[1:] != self._layers[:-1]
        # Candidates of a layer stand together in falling order, so its first one is its best.
        seeded = first.nonzero().squeeze(1)
        rest = (~first).nonzero().squeeze(1)
        room = max(0, self._places - seeded.numel())
        best = torch.sort(self._scores[rest], descending=True, stable=True).indices[:room]
        return torch.cat((seeded, rest[best])).sort().values

    def _keep(self, indices: Tensor) -> None:
        self._scores = self._scores[indices]
        self._layers = self._layers[indices]
        self._positions = self._positions[indices]
