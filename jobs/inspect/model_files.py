"""Inspection of a model folder: small files, headers of weights, and its description. No torch.

The files tell what there is, and how many bytes. Names and shapes are those of the model that
transformers makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.describe_client import describe_folder
from jobs.inspect.encoder_decoders import find_side_limit, is_encoder_decoder
from jobs.inspect.model_checks import (
    check_config,
    check_folder,
    check_layer_count,
    get_architecture,
    read_object,
)
from jobs.inspect.model_description import ModelDescription
from jobs.inspect.model_folder import find_model_folder, read_config
from jobs.inspect.weight_files import read_weights
from jobs.spec.schema import ModelSection
from slora.layers.shapes import LayerShape

PADDED_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta")
"""Encoders that number positions from behind the padding index: two rows are never used."""


@dataclass(frozen=True)
class ModelFiles:
    """A model as described by its files."""

    folder: Path
    model_type: str
    architecture: str
    """The class that wrote the model."""
    description: ModelDescription
    max_positions: int | None
    chat_template: bool
    bytes: int
    config: dict[str, Any] = field(default_factory=dict)
    """The contents of config.json; those of a language model inside a multimodal one come first."""

    @property
    def parameters(self) -> int:
        """Return the number of parameters outside the head."""
        return self.description.count_base_parameters()

    @property
    def linears(self) -> Mapping[str, LayerShape]:
        """Return the shape of every layer that can be adapted, in the model's order."""
        return self.description.linears

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters outside the head."""
        return {name: facts.shape for name, facts in self.description.base.items()}


def read_model(section: ModelSection) -> tuple[ModelFiles | None, list[Fault]]:
    """Return the model of a folder, or all reasons why it cannot be used.

    Raise NotInstalled where transformers is missing and nobody has described the model before.
    """
    folder = find_model_folder(section.path)
    if folder is None:
        remedy = "Use a folder with config.json and *.safetensors; download hub ids first."
        return None, [Fault("model.path", f"{section.path}: no such model folder", remedy)]
    faults = check_folder(folder)
    if any("adapter" in fault.problem for fault in faults):
        return None, faults
    config, config_faults = read_config(folder)
    faults += config_faults or check_config(section.task, folder, config)
    spans, span_faults = read_weights(folder)
    faults += span_faults or check_layer_count(folder, config, len(spans))
    if faults:
        return None, faults
    try:
        description = describe_folder(folder, section.task, spans)
    except InputError as error:
        return None, list(error.faults)
    size = sum(span.end - span.begin for span in spans.values())
    return _build_model_files(folder, config, description, size), []


def find_max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that the model of a config can number, or None."""
    if is_encoder_decoder(config):
        return find_side_limit(config)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int):
        return None
    if config.get("model_type") in PADDED_POSITIONS:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1
    return positions


def _build_model_files(
    folder: Path, config: dict[str, Any], description: ModelDescription, size: int
) -> ModelFiles:
    text_config = config.get("text_config")
    merged = {**config, **text_config} if isinstance(text_config, dict) else config
    return ModelFiles(
        folder=folder,
        model_type=str(config.get("model_type")),
        architecture=get_architecture(config),
        description=description,
        max_positions=find_max_positions(merged),
        chat_template=_has_chat_template(folder),
        bytes=size,
        config=merged,
    )


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool((read_object(folder / "tokenizer_config.json") or {}).get("chat_template"))
