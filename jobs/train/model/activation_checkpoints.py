"""Activation checkpoints: each layer keeps its input alone, and computes the rest again.

The backward of a layer runs its forward once more, so a training step takes about a third longer,
and holds the activations of one layer at a time (Chen et al., 2016, arXiv:1604.06174). The second
forward computes the same bits: dropout is off, and kernels are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from jobs.errors import Fault, InputError


def checkpoint_activations(model: nn.Module, *, is_sharded: bool = False) -> int:
    """Make each layer of the model's stacks keep only its input. Return their number.

    `is_sharded`: DeepSpeed gathers the weights around each forward. Raise InputError if
    transformers' class of the model has no such layers.
    """
    layers = list(_iterate_outermost(model))
    if not layers:
        problem = f"{type(model).__name__} has no layers that can be computed again"
        remedy = "Set it to false, or use a smaller train.micro_batch_size."
        raise InputError([Fault("train.activation_checkpointing", problem, remedy)])
    for layer in layers:
        layer.forward = _checkpoint(layer.forward, is_sharded=is_sharded)
    return len(layers)


def _iterate_outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _iterate_outermost(child)


def _checkpoint(forward: Callable[..., Any], *, is_sharded: bool) -> Callable[..., Any]:
    @wraps(forward)
    def forward_again(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        if is_sharded:
            return _run_reentrant(forward, inputs, options)
        return checkpoint(
            forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options
        )

    return forward_again


def _run_reentrant(
    forward: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Run a layer whose backward is a graph of its own, as DeepSpeed needs it.

    torch's other way computes the layer again in the middle of its backward, where the end of that
    forward would release the weights that the backward has gathered.
    """
    names, count = tuple(options), len(inputs)

    def run(*values: Any) -> Any:
        return forward(*values[:count], **dict(zip(names, values[count:], strict=True)))

    # Gradients pass to positional arguments only, and not at all if none of them has one.
    values = [*inputs, *options.values()]
    if not any(isinstance(value, Tensor) and value.requires_grad for value in values):
        first = next(i for i, value in enumerate(values) if _is_real(value))
        values[first] = values[first].detach().requires_grad_()
    return checkpoint(run, *values, use_reentrant=True, preserve_rng_state=False)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
