"""Read and write an adapter's folder: LoRA as stock PEFT reads it, or the compact form.

Files are untrusted until `read_adapter` has checked their names, shapes and values.

O, I: rows and columns of a weight. R: the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from slora.errors import BadAdapter
from slora.formats.compact import (
    SPARSE_CONFIG,
    SPARSE_WEIGHTS,
    SparseAdapter,
    read_sparse,
    write_sparse,
)
from slora.formats.files import (
    LABELS,
    TASK_TYPES,
    read_json,
    read_labels,
    read_revision,
    read_task,
    read_tensors,
    write_files,
)

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."

__all__ = [
    "LABELS",
    "PEFT_CONFIG",
    "PEFT_WEIGHTS",
    "SPARSE_CONFIG",
    "SPARSE_WEIGHTS",
    "LoraAdapter",
    "SparseAdapter",
    "read_adapter",
    "write_lora",
    "write_sparse",
]


@dataclass(frozen=True)
class LoraAdapter:
    """Factors (a_RI, b_OR) by layer, and the head's tensors by their name in the model.

    `rslora`: the update is scaled by alpha / sqrt(R). `conv1d`: the targets are Conv1D layers.
    `base`, `revision`: a hub id and its commit, or a folder or URL without one.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float
    rank: int
    base: str
    task: str
    rslora: bool = False
    conv1d: bool = False
    target_modules: tuple[str, ...] = ()
    head_modules: tuple[str, ...] = ()
    head: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def write_lora(folder: Path, adapter: LoraAdapter) -> None:
    """Write a folder that stock PEFT, vLLM and ray.serve.llm load directly. Raise BadAdapter."""
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in adapter.head.items()}
    for name, (a_RI, b_OR) in adapter.factors.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a_RI
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = b_OR
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "r": adapter.rank,
        # PEFT expects an integer; a fraction stays a float.
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": adapter.conv1d,
        "use_rslora": adapter.rslora,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": sorted(adapter.target_modules or adapter.factors),
        "modules_to_save": sorted(adapter.head_modules) or None,
    }
    write_files(folder, PEFT_CONFIG, config, PEFT_WEIGHTS, tensors, adapter.labels)


def read_adapter(folder: Path) -> LoraAdapter | SparseAdapter:
    """Return the validated adapter of a folder. Raise BadAdapter with the file and the reason."""
    labels = read_labels(folder)
    if (folder / PEFT_CONFIG).exists():
        return _read_lora(folder, labels)
    if (folder / SPARSE_CONFIG).exists():
        return read_sparse(folder, labels)
    raise BadAdapter(str(folder), f"contains neither {PEFT_CONFIG} nor {SPARSE_CONFIG}")


def _read_lora(folder: Path, labels: tuple[str, ...]) -> LoraAdapter:
    path = folder / PEFT_CONFIG
    config = read_json(path, {})
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise BadAdapter(str(path), "only plain LoRA is supported, not DoRA")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise BadAdapter(str(path), "ranks or alphas per layer are not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BadAdapter(str(path), f"r ({rank!r}) and lora_alpha ({alpha!r}) must be numbers")
    factors, head = _split_lora(read_tensors(folder / PEFT_WEIGHTS), rank, folder / PEFT_WEIGHTS)
    saved_modules = config.get("modules_to_save") or ()
    return LoraAdapter(
        factors=factors,
        alpha=float(alpha),
        rank=rank,
        rslora=config.get("use_rslora") is True,
        conv1d=config.get("fan_in_fan_out") is True,
        base=str(config.get("base_model_name_or_path")),
        task=read_task(config, path),
        target_modules=tuple(map(str, config.get("target_modules") or ())),
        head_modules=tuple(map(str, saved_modules)),
        head=head,
        labels=labels,
        revision=read_revision(config),
    )


def _split_lora(
    tensors: Mapping[str, Tensor], rank: int, path: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            a[name.removesuffix(".lora_A.weight")] = tensor
        elif name.endswith(".lora_B.weight"):
            b[name.removesuffix(".lora_B.weight")] = tensor
        else:
            head[name] = tensor
    if unpaired := sorted(a.keys() ^ b.keys()):
        raise BadAdapter(str(path), f"{unpaired[0]} has only one of its two factors")
    factors = {name: (a_RI, b[name]) for name, a_RI in a.items()}
    for name, (a_RI, b_OR) in factors.items():
        if a_RI.ndim != 2 or b_OR.ndim != 2 or {a_RI.shape[0], b_OR.shape[1]} != {rank}:
            shapes = f"A {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}"
            raise BadAdapter(str(path), f"{name}: {shapes} do not have rank {rank}")
    return factors, head
