"""Write a fully trained model as a folder like that of its base, with the base's names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from jobs.train.model.base_model import iter_saved_buffers
from jobs.train.model.tokenizer import save_tokenizer

GENERATION_CONFIG = "generation_config.json"


def write_full_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
    *,
    base: Path,
) -> None:
    """Write the model with these weights; what training does not change is the base's."""
    parameters = dict(model.named_parameters())
    # Under ZeRO-3 the model's own parameters are empty. Its buffers are complete on every rank.
    state = {name: tensor.to(parameters[name].dtype) for name, tensor in weights.items()}
    state |= {name: buffer.cpu() for name, buffer in iter_saved_buffers(model)}
    has_own_generation = model.can_generate() and (base / GENERATION_CONFIG).is_file()
    if has_own_generation:
        # transformers refuses to write settings that it has read, if they contradict each other.
        model.generation_config = GenerationConfig()
    # save_pretrained would tie and name the weights as the model does.
    model.save_pretrained(folder, state_dict=state)
    if has_own_generation:
        shutil.copyfile(base / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    save_tokenizer(tokenizer, folder)
