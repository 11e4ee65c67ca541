"""Try whether stock PEFT holds the adapter of a planned run: factors of zeros on the empty base."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jobs.train.model.base_model import is_within, load_empty_model
from slora.formats.peft import LoraAdapter, write_lora
from slora.formats.peft_check import find_peft_loss
from slora.formats.peft_targets import name_targets
from slora.layers.shapes import LayerShape, get_factor_shapes
from slora.layers.token_rows import SUFFIX


def find_planned_loss(
    folder: str,
    task: str,
    *,
    targets: Mapping[str, Sequence[int]],
    head_modules: Sequence[str],
    labels: Sequence[str],
    trains_tokens: bool,
) -> str:
    """Return what stock PEFT would lose of an adapter, or an empty string.

    `targets`: rows, columns and experts by layer. The rank, and which tokens, do not matter.
    """
    model = load_empty_model(folder, task=task, labels=labels)
    factors = {name: _make_factors(LayerShape(*sizes)) for name, sizes in targets.items()}
    rows = _make_token_rows(model) if trains_tokens else {}
    adapter = LoraAdapter(
        factors=factors,
        alpha=1.0,
        rank=1,
        base=folder,
        task=task,
        **name_targets(model, factors),
        head_modules=tuple(head_modules),
        head={**_make_head(model, head_modules), **rows},
        tokens={name.removesuffix(SUFFIX): (0,) for name in rows},
        labels=tuple(labels),
    )
    with tempfile.TemporaryDirectory(prefix="slora-probe-") as scratch:
        write_lora(Path(scratch), adapter)
        return find_peft_loss(model, Path(scratch), adapter)


def _make_factors(shape: LayerShape) -> tuple[Tensor, Tensor]:
    a_shape, b_shape = get_factor_shapes(shape, 1)
    return torch.zeros(a_shape), torch.zeros(b_shape)


def _make_head(model: PreTrainedModel, head_modules: Sequence[str]) -> dict[str, Tensor]:
    return {
        name: torch.zeros(parameter.shape)
        for name, parameter in model.named_parameters()
        if is_within(name, head_modules)
    }


def _make_token_rows(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a row of each module that `install_token_rows` gives rows of its own."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    owners = {id(embedding)}
    if isinstance(output, nn.Linear) and output.weight is not embedding.weight:
        owners.add(id(output))
    return {
        f"{name}{SUFFIX}": torch.zeros(1, module.weight.shape[1])
        for name, module in model.named_modules()
        if id(module) in owners
    }
