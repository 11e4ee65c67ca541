"""The frozen base through transformers: from a folder, without running its code or unpickling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

LOADERS: dict[str, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
}


def load_model(
    path: str, *, task: str, dtype: str, labels: Sequence[str] = (), seed: int = 0
) -> PreTrainedModel:
    """Load the base on the CPU, in evaluation mode; a classifier's head is drawn from `seed`."""
    config = _load_config(path, task, labels)
    # A new head is drawn from torch's global generator: the same on every rank.
    torch.manual_seed(seed)
    model = LOADERS[task].from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    # Evaluation mode: with dropout the result would depend on how rows are split over workers.
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer, with its chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_saved_task(path: str | Path) -> tuple[str, tuple[str, ...]]:
    """Return the task of a saved model, and a classifier's labels in their order."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        labels = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
        return "sequence-classification", labels
    return "causal-lm", ()


def find_trained_head(model: PreTrainedModel, task: str) -> list[nn.Module]:
    """Return the modules that the task adds to the base and that are trained completely."""
    if task == "causal-lm":
        return []
    return [module for _, module in list_head_modules(model)]


def find_untargeted_modules(model: PreTrainedModel, task: str) -> list[nn.Module]:
    """Return the modules that are never targets: the trained head and the output projection."""
    projection = model.get_output_embeddings()
    return find_trained_head(model, task) + ([projection] if projection is not None else [])


def list_head_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Return a classifier's modules beside its base, by name."""
    return [
        (name, module)
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def _load_config(path: str, task: str, labels: Sequence[str]) -> Any:
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if task == "sequence-classification":
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        if config.pad_token_id is None:
            # Decoders classify at the last token that is not padding.
            config.pad_token_id = load_tokenizer(path).pad_token_id
    else:
        config.use_cache = False
    return config
