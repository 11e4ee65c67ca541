"""Single rows of an embedding, and of the output projection, trained whole: `method.train_tokens`.

K: tokens. D: width. The rows are a parameter `token_rows [K, D]`, float32, beside the frozen
weight, as in PEFT's `trainable_token_indices`: it replaces their rows, and gradients, optimizer
state and files have K rows. Where input and output share one weight, they share the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slora.errors import BadAdapter

SUFFIX = ".token_rows"
TokenIds = Mapping[str, tuple[int, ...]]
"""The ids of the rows by the name of the module that holds them."""


class TokenEmbedding(nn.Module):
    """The class that an embedding takes on, before its own, while some of its rows are trained."""

    token_rows: nn.Parameter
    token_ids: Tensor
    token_slots: Tensor

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        frozen: Tensor = super().forward(ids, *args, **kwargs)
        slots = self.token_slots[ids]
        # Some embeddings scale what they look up.
        rows = self.token_rows.to(frozen.dtype) * getattr(self, "embed_scale", 1.0)
        trained = nn.functional.embedding(slots.clamp_min(0), rows.to(frozen.dtype))
        return torch.where((slots >= 0)[..., None], trained, frozen)


class TokenProjection(nn.Module):
    """The same for an output projection: the logits of the trained rows replace the frozen ones."""

    token_rows: nn.Parameter
    token_ids: Tensor

    def forward(self, x: Tensor) -> Tensor:
        frozen: Tensor = super().forward(x)
        bias: Any = self.bias
        bias_K = None if bias is None else bias[self.token_ids]
        trained = nn.functional.linear(x, self.token_rows.to(x.dtype), bias_K)
        return frozen.index_copy(-1, self.token_ids, trained)


def install_token_rows(model: Any, ids: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Train these rows of the input embedding, and of an output projection.

    Return the ids by the name of each module that holds rows of its own.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    ids_K = torch.tensor(list(ids), device=embedding.weight.device)
    slots = torch.full((embedding.weight.shape[0],), -1, device=ids_K.device)
    slots[ids_K] = torch.arange(len(ids), device=ids_K.device)
    rows = _make_rows(embedding, ids_K)
    _take_on(embedding, TokenEmbedding, rows, token_ids=ids_K, token_slots=slots)
    if isinstance(output, nn.Linear):
        is_tied = output.weight is embedding.weight
        _take_on(
            output, TokenProjection, rows if is_tied else _make_rows(output, ids_K),
            token_ids=ids_K,
        )  # fmt: skip
    return list_token_rows(model)


def list_token_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the ids of the trained rows by the name of each module that holds rows of its own."""
    owners: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, TokenEmbedding | TokenProjection):
            owners.setdefault(id(module.token_rows), (name, tuple(module.token_ids.tolist())))
    return dict(owners.values())


def write_token_rows(model: Any, name: str, ids: Sequence[int], rows: Tensor, base: str) -> None:
    """Write the rows into the weight of a module for good. Raise BadAdapter if it has no such rows.

    New tokens need a larger embedding first: `resize_for_tokens`.
    """
    modules = dict(model.named_modules())
    weight = getattr(modules.get(name), "weight", None)
    if weight is None or rows.shape != (len(ids), weight.shape[1]) or max(ids) >= len(weight):
        raise BadAdapter(base, f"the base has no {name} with rows for the trained tokens")
    with torch.no_grad():
        weight[torch.tensor(list(ids), device=weight.device)] = rows.to(weight)


def resize_for_tokens(model: Any, count: int) -> None:
    """Give the model rows for so many tokens, if it has less."""
    known = model.get_input_embeddings().weight.shape[0]
    if known >= count:
        return
    model.resize_token_embeddings(count, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            # A new token starts as the mean of all others, without chance.
            weight = module.weight.data
            weight[known:] = weight[:known].float().mean(0).to(weight.dtype)


def _make_rows(module: Any, ids_K: Tensor) -> nn.Parameter:
    return nn.Parameter(module.weight.detach()[ids_K].float())


def _take_on(module: Any, behaviour: type, rows: nn.Parameter, **buffers: Tensor) -> None:
    cls = type(module)
    module.__class__ = type(cls.__name__, (behaviour, cls), {"__module__": cls.__module__})
    module.token_rows = rows
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer, persistent=False)
