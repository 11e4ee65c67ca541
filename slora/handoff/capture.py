"""Sketch the inputs and output gradients of layers while a model runs.

O, I: rows and columns of a weight. N: tokens. m, L: sequences and tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slora.handoff.sketch import LayerSketch


class CountedTokens:
    """The tokens of the running micro-batch that a sketch counts."""

    def __init__(self) -> None:
        self._masks: list[Tensor] = []

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Set the boolean masks `[m, L]` of a micro-batch: one, or of decoder and encoder."""
        self._masks = list(masks)

    def select(self, x: Tensor) -> Tensor:
        """Return the counted tokens of `[..., F]` as `[N, F]`, by the first mask that fits its
        size; all of them if none fits.
        """
        flat_NF = x.detach().reshape(-1, x.shape[-1])
        for mask in self._masks:
            if x.shape[:-1] == mask.shape or (x.ndim == 2 and len(x) == mask.numel()):
                return flat_NF[mask.flatten().to(x.device)]
        return flat_NF


@contextmanager
def sketch_layers(
    layers: Mapping[str, nn.Module], sketches: Mapping[str, LayerSketch], tokens: CountedTokens
) -> Iterator[None]:
    """Inside the block, add what each layer reads to its sketch, and its output's gradients if the
    sketch has room for them. Layers that no sketch names are left alone.
    """
    handles = []

    def make_hook(sketch: LayerSketch) -> Any:
        def add_gradients(g: Tensor) -> None:
            sketch.add_gradients(tokens.select(g))

        def add_tokens(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            sketch.add_inputs(tokens.select(args[0]))
            if sketch.gradients_OK is not None and output.requires_grad:
                output.register_hook(add_gradients)  # type: ignore[no-untyped-call]

        return add_tokens

    for name, sketch in sketches.items():
        handles.append(layers[name].register_forward_hook(make_hook(sketch)))
    try:
        with torch.no_grad() if not _needs_gradients(sketches) else torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _needs_gradients(sketches: Mapping[str, LayerSketch]) -> bool:
    return any(sketch.gradients_OK is not None for sketch in sketches.values())
