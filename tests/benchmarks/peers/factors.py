"""The factors that both sides start from, as a PEFT state dict."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from slora.layers.lora import init_factors


def write_factors(model: Path, target: Path, *, rank: int, seed: int) -> None:
    """Write the factors that `slora train` draws with this seed, for all linear layers."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    tensors = {}
    for name, module in skeleton.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        shape = (module.out_features, module.in_features)
        a_RI, b_OR = init_factors(seed=seed, name=name, shape=shape, rank=rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{name}.lora_B.weight"] = b_OR
    save_file(tensors, target)
