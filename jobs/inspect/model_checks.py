"""Checks of a model folder that need its small files only, before its model is built. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import Fault
from jobs.inspect.encoder_decoders import is_encoder_decoder

NOT_TEXT = ("ForImageClassification", "ForAudioClassification", "ForSpeechSeq2Seq", "ForCTC",
            "ForObjectDetection")  # fmt: skip
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                "decoder_layers", "depth")  # fmt: skip
DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def check_folder(folder: Path) -> list[Fault]:
    """Check which files the folder has beside its weights."""
    return [
        *_check_adapter(folder),
        *_check_tokenizer(folder),
        *_check_generation_config(folder),
    ]


def check_config(task: str, folder: Path, config: dict[str, Any]) -> list[Fault]:
    """Check what config.json says of the model."""
    return list(_iter_config_faults(task, folder, config))


def _iter_config_faults(task: str, folder: Path, config: dict[str, Any]) -> Iterator[Fault]:
    architecture, source = get_architecture(config), f"{folder}/config.json"
    if task == "causal-lm" and is_encoder_decoder(config):
        problem = f"{architecture} ({source}) is an encoder-decoder, not a causal language model"
        yield Fault("model.task", problem, "Use model.task: seq2seq.")
    elif task == "causal-lm" and not architecture.endswith(DECODERS):
        problem = f"{architecture} ({source}) is not a causal language model"
        yield Fault("model.task", problem, "Use sequence-classification or another model.")
    if task == "sequence-classification" and architecture.endswith(NOT_TEXT):
        problem = f"{architecture} ({source}) cannot classify sequences"
        yield Fault("model.task", problem, "Use an encoder or a causal language model.")
    if config.get("quantization_config"):
        problem = f"{source} has a quantization_config, and quantized bases are not supported"
        yield Fault("model.path", problem, "Use the model's bfloat16 or float32 version.")
    if not isinstance(config.get("model_type"), str):
        problem = f"{source} has no model_type"
        yield Fault("model.path", problem, "Use a model folder written by `save_pretrained`.")


def check_layer_count(folder: Path, config: dict[str, Any], weights: int) -> Iterator[Fault]:
    """Check that config.json has no more layers than the files have weights: an absurd number
    would take all of a machine's memory before it was found wrong.
    """
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in LAYER_COUNTS:
            count = section.get(key)
            if isinstance(count, int) and count > weights:
                problem = (
                    f"{folder}/config.json has {key} {count}, its files have {weights} weights"
                )
                yield Fault("model.path", problem, "Use the config.json of these weights.")


def get_architecture(config: dict[str, Any]) -> str:
    """Return the class that wrote the model."""
    architectures = config.get("architectures")
    return (
        str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "no architecture"
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_adapter(folder: Path) -> Iterator[Fault]:
    """Refuse an adapter: transformers would load its base instead, or both together."""
    if not (folder / "adapter_config.json").is_file():
        return
    adapter = read_object(folder / "adapter_config.json") or {}
    base = adapter.get("base_model_name_or_path")
    if (folder / "config.json").is_file():
        problem = f"{folder} has an adapter beside the model (adapter_config.json)"
        remedy = "Move the adapter's files to another folder: they would be loaded with the model."
    else:
        problem = f"{folder} is an adapter, not a model"
        remedy = f"Use its base: model.path: {base}." if base else "Use the path of its base."
    yield Fault("model.path", problem, remedy)


def _check_tokenizer(folder: Path) -> Iterator[Fault]:
    files = [folder / "tokenizer.json", *folder.glob("*.model")]
    has_parts = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not any(path.is_file() for path in files) and not (
        has_parts or (folder / "vocab.txt").is_file()
    ):
        remedy = "Save the tokenizer there: tokenizer.save_pretrained(folder)."
        yield Fault("model.path", f"{folder} has no tokenizer.json", remedy)


def _check_generation_config(folder: Path) -> Iterator[Fault]:
    path = folder / "generation_config.json"
    if path.is_file() and read_object(path) is None:
        yield Fault("model.path", f"{path} is not a JSON object", "Correct or remove the file.")
