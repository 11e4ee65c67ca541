"""Inspection of a model folder: config.json and safetensors headers. No weights, no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import Fault
from jobs.spec.schema import ModelSection
from jobs.store.adapters.safetensors_header import BadTensors, TensorSpan, read_header
from jobs.store.cache import fetch_folder

EMBEDDINGS = ("embed", "wte", "wpe", "shared", "relative_attention_bias")
"""Parts of the names of two-dimensional weights that are lookup tables."""
HEADS = ("lm_head", "embed_out", "cls", "classifier", "pre_classifier", "score", "qa_outputs",
         "predictions", "vocab_transform", "vocab_projector")  # fmt: skip
"""Parts of the names of output heads, which are never targets."""
WEIGHTS = ("F64", "F32", "F16", "BF16")
"""Types of parameters; integers are buffers (position ids)."""
NOT_TEXT = ("ForConditionalGeneration", "ForImageClassification", "ForAudioClassification",
            "ForSpeechSeq2Seq", "ForCTC", "ForObjectDetection")  # fmt: skip
HEADS_OF_TWO_LAYERS = ("camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
                       "roberta", "xlm-roberta")  # fmt: skip
"""Encoders whose classifier has a dense layer before the one that scores the labels."""
PADDED_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta")
"""Encoders that number positions from behind the padding index: two rows are never used."""
DECODERS = ("ForCausalLM", "LMHeadModel")
BASE_NAMES = {
    **dict.fromkeys(("camembert", "roberta", "xlm-roberta"), "roberta"),
    **dict.fromkeys(("deberta", "deberta-v2"), "deberta"),
    **dict.fromkeys(
        ("modernbert", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"), "model"
    ),
}
"""The name that a model with a head gives its base, if it is not the model type."""
MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files that are downloaded from a model's folder in a bucket: no pickles, no code."""
CONV1D = ("gpt2", "openai-gpt")
"""Models with transformers' Conv1D layers, whose weights are stored as [in, out]."""
DECODER_HEADS_WITHOUT_BIAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")


@dataclass(frozen=True)
class ModelFiles:
    """A model as described by its files."""

    folder: Path
    model_type: str
    architecture: str
    parameters: int
    """Parameters in the files, without a head that the task adds."""
    linears: dict[str, tuple[int, int]]
    """Shape [out, in] of every linear layer but the heads, by name, in the files' order."""
    experts: tuple[str, ...]
    """Weights of experts, which transformers fuses into one tensor and which have no adapter."""
    hidden_size: int
    max_positions: int | None
    chat_template: bool
    bytes: int
    config: dict[str, Any] = field(default_factory=dict)
    """The contents of config.json."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every weight, by its name in the files."""

    def count_head_parameters(self, task: str, labels: int) -> int:
        """Count the parameters of the head for sequence classification; 0 for a language model."""
        if task != "sequence-classification":
            return 0
        width = self.hidden_size
        dense = width * width + width if self.model_type in HEADS_OF_TWO_LAYERS else 0
        decoder = self.architecture.endswith(DECODERS)
        bias = 0 if decoder or self.model_type in DECODER_HEADS_WITHOUT_BIAS else labels
        return dense + width * labels + bias


def read_model(section: ModelSection) -> tuple[ModelFiles | None, list[Fault]]:
    """Return the model of a folder, or all reasons why it cannot be used."""
    folder = find_model_folder(section.path)
    if folder is None:
        remedy = "Use a folder with config.json and *.safetensors; download hub ids first."
        return None, [Fault("model.path", f"{section.path}: no such model folder", remedy)]
    config, faults = _read_config(folder)
    spans, tensor_faults = _read_spans(folder)
    faults += tensor_faults or _check_shards(folder)
    if not (folder / "tokenizer.json").is_file() and not list(folder.glob("*.model")):
        remedy = "Save the tokenizer there: tokenizer.save_pretrained(folder)."
        faults.append(Fault("model.path", f"{folder} has no tokenizer.json", remedy))
    if faults:
        return None, faults
    faults = _check_task(section, folder, config)
    return _build_model_files(folder, config, spans), faults


def find_model_folder(path: str, revision: str | None = None) -> Path | None:
    """Find the folder of `model.path`: a folder, or the cache of an s3:// URL or of the hub.

    `revision`: the commit of a hub id, the newest one in the cache by default.
    """
    if path.startswith("s3://"):
        return fetch_folder(path, MODEL_FILES)
    # Not pathlib, which raises for a name that is too long and for a home that is not known.
    folder = os.path.expanduser(path)
    if os.path.isdir(folder):
        return Path(folder).resolve()
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _find_in_hub_cache(path, revision)
    return None


def has_conv1d(path: str, revision: str | None = None) -> bool:
    """Return whether the base has Conv1D layers; False if its folder does not exist."""
    folder = find_model_folder(path, revision)
    return folder is not None and _read_config(folder)[0].get("model_type") in CONV1D


def list_base_files(folder: Path) -> list[Path]:
    """List the files that make a base: config.json and the weights."""
    return sorted([folder / "config.json", *folder.glob("*.safetensors")])


def digest_model(folder: Path) -> str:
    """Return the SHA-256 over the names and bytes of config.json and the weights."""
    sha256 = hashlib.sha256()
    for path in list_base_files(folder):
        sha256.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def _find_in_hub_cache(hub_id: str, revision: str | None) -> Path | None:
    # Imported here: it takes a third of a second, which only a hub id needs.
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _read_config(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "Use a model folder written by `save_pretrained`."
        return {}, [Fault("model.path", f"{path} cannot be read ({error})", remedy)]
    return config, []


def _read_spans(folder: Path) -> tuple[dict[str, TensorSpan], list[Fault]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in folder.glob("*.bin")]
        content = f"only {pickled[0]}, which is pickled" if pickled else "no *.safetensors"
        remedy = "Save the model with save_pretrained: only safetensors files are read."
        return {}, [Fault("model.path", f"{folder} has {content}", remedy)]
    spans: dict[str, TensorSpan] = {}
    faults = []
    for path in files:
        try:
            spans.update(read_header(path))
        except (OSError, BadTensors) as error:
            remedy = "Download the model again."
            faults.append(Fault("model.path", f"{path} cannot be read: {error}", remedy))
    return spans, faults


def _check_shards(folder: Path) -> list[Fault]:
    """Check that every file of a sharded model exists."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return []
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).is_file())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [Fault("model.path", f"{path} cannot be read", "Download the model again.")]
    if not missing:
        return []
    problem = (
        f"{folder} lacks {len(missing)} of {len(names)} weight files, the first is {missing[0]}"
    )
    return [Fault("model.path", problem, "Download the model again.")]


def _check_task(section: ModelSection, folder: Path, config: dict[str, Any]) -> list[Fault]:
    faults = []
    architecture, source = _get_architecture(config), f"{folder}/config.json"
    causal = architecture.endswith(DECODERS)
    if section.task == "causal-lm" and not causal:
        problem = f"{architecture} ({source}) is not a causal language model"
        faults.append(Fault("model.task", problem, "Use sequence-classification or another model."))
    if section.task == "sequence-classification" and architecture.endswith(NOT_TEXT):
        problem = f"{architecture} ({source}) cannot classify sequences"
        faults.append(Fault("model.task", problem, "Use an encoder or a causal language model."))
    if config.get("quantization_config"):
        problem = f"{source} has a quantization_config, and quantized bases are not supported"
        faults.append(Fault("model.path", problem, "Save the model without quantization."))
    if config.get("auto_map"):
        problem = f"{source} requires custom code (auto_map), which is never executed"
        faults.append(
            Fault("model.path", problem, "Use a model that transformers supports natively.")
        )
    return faults


def _build_model_files(
    folder: Path, config: dict[str, Any], spans: dict[str, TensorSpan]
) -> ModelFiles:
    positions = _to_int(config.get("max_position_embeddings") or config.get("n_positions"))
    if positions and config.get("model_type") in PADDED_POSITIONS:
        positions -= (_to_int(config.get("pad_token_id")) or 1) + 1
    return ModelFiles(
        folder=folder,
        model_type=str(config.get("model_type")),
        architecture=_get_architecture(config),
        parameters=sum(math.prod(s.shape) for s in spans.values() if s.dtype in WEIGHTS),
        linears=dict(
            _iter_linears(
                spans, prefix=_get_prefix(config), transposed=config.get("model_type") in CONV1D
            )
        ),
        experts=tuple(name for name in spans if "experts" in name.split(".")),
        hidden_size=_to_int(config.get("hidden_size") or config.get("dim") or config.get("n_embd"))
        or 0,
        max_positions=positions,
        chat_template=_has_chat_template(folder),
        bytes=sum(span.end - span.begin for span in spans.values()),
        config=config,
        shapes={name: span.shape for name, span in spans.items() if span.dtype in WEIGHTS},
    )


def _get_architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    return (
        str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "no architecture"
    )


def _to_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _get_prefix(config: dict[str, Any]) -> str:
    """Return the prefix of a bare base in the task's model, which its files lack."""
    if not _get_architecture(config).endswith("Model") or _get_architecture(config).endswith(
        DECODERS
    ):
        return ""
    kind = str(config.get("model_type"))
    return f"{BASE_NAMES.get(kind, kind)}."


def _iter_linears(
    spans: dict[str, TensorSpan], *, prefix: str, transposed: bool
) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, span in spans.items():
        parts = name.split(".")
        if len(span.shape) != 2 or parts[-1] != "weight" or "experts" in parts:
            continue
        if any(part in HEADS or any(word in part for word in EMBEDDINGS) for part in parts):
            continue
        out_in = (span.shape[1], span.shape[0]) if transposed else (span.shape[0], span.shape[1])
        yield prefix + name.removesuffix(".weight"), out_in


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
