"""The adapter's folder: LoRA as stock PEFT reads it, sparse values with the seed of their mask.

Only safetensors and JSON are written or read: nothing that is pickled. What is read is hostile
until `read` has checked its names, shapes and values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slora.errors import BadAdapter, SloraError
from slora.mask import Mask, random_mask

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPARSE_CONFIG, SPARSE_WEIGHTS = "sparse_config.json", "sparse_model.safetensors"
LABELS = "labels.json"
PEFT_PREFIX = "base_model.model."
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


@dataclass(frozen=True)
class LoraAdapter:
    """Factors (a_RI, b_OR) by layer, and the head's tensors by their name in the model."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float
    rank: int
    base: str
    task: str
    target_modules: tuple[str, ...] = ()
    head_modules: tuple[str, ...] = ()
    head: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class SparseAdapter:
    """Values by layer, and the head's tensors. The masks are drawn again from the seed."""

    values: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    seed: int
    density: float
    base: str
    task: str
    head: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def masks(self) -> dict[str, Mask]:
        return {
            name: random_mask(seed=self.seed, name=name, shape=shape, density=self.density)
            for name, shape in self.shapes.items()
        }


def write_lora(folder: Path, adapter: LoraAdapter) -> None:
    """A folder that stock PEFT, vLLM and ray.serve.llm read as it is. Raises BadAdapter."""
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in adapter.head.items()}
    for name, (a_RI, b_OR) in adapter.factors.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a_RI
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = b_OR
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        # PEFT reads an integer; a fraction is kept as it is.
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": sorted(adapter.target_modules or adapter.factors),
        "modules_to_save": sorted(adapter.head_modules) or None,
    }
    _write(folder, PEFT_CONFIG, config, PEFT_WEIGHTS, tensors, adapter.labels)


def write_sparse(folder: Path, adapter: SparseAdapter) -> None:
    """Values and a seed, no indices: the exact update in its smallest form. Raises BadAdapter."""
    tensors = dict(adapter.head)
    tensors.update({f"{name}.values": values for name, values in adapter.values.items()})
    config = {
        "format": 1,
        "task_type": TASK_TYPES[adapter.task],
        "base_model_name_or_path": adapter.base,
        "mask": "random",
        "seed": adapter.seed,
        "density": adapter.density,
        "shapes": {name: list(shape) for name, shape in adapter.shapes.items()},
    }
    _write(folder, SPARSE_CONFIG, config, SPARSE_WEIGHTS, tensors, adapter.labels)


def read(folder: Path) -> LoraAdapter | SparseAdapter:
    """The adapter in a folder, checked. Raises BadAdapter with the file and the reason."""
    labels: tuple[str, ...] = ()
    if (folder / LABELS).exists():
        labels = tuple(str(label) for label in _json(folder / LABELS, []))
    if (folder / PEFT_CONFIG).exists():
        return _read_lora(folder, labels)
    if (folder / SPARSE_CONFIG).exists():
        return _read_sparse(folder, labels)
    raise BadAdapter(str(folder), f"neither {PEFT_CONFIG} nor {SPARSE_CONFIG} is in it")


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses an empty set, an empty tensor and a value that is not finite. Raises BadAdapter."""
    if not tensors:
        raise BadAdapter(where, "there is no tensor to save")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise BadAdapter(where, f"{name} is empty, of shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise BadAdapter(where, f"{name} has values that are not finite")


def _write(
    folder: Path,
    config_name: str,
    config: Mapping[str, Any],
    weights_name: str,
    tensors: Mapping[str, Tensor],
    labels: tuple[str, ...],
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_tensors(plain, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if labels:
        (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False) + "\n")
    (folder / config_name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(plain, folder / weights_name, metadata={"format": "pt"})


def _read_lora(folder: Path, labels: tuple[str, ...]) -> LoraAdapter:
    where = folder / PEFT_CONFIG
    config = _json(where, {})
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise BadAdapter(str(where), "only plain LoRA is read (no DoRA, no rsLoRA)")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise BadAdapter(str(where), "ranks or alphas that differ by layer are not read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BadAdapter(str(where), f"r is {rank!r} and lora_alpha {alpha!r}: numbers are needed")
    factors, head = _split_lora(_tensors(folder / PEFT_WEIGHTS), rank, folder / PEFT_WEIGHTS)
    saved = config.get("modules_to_save") or ()
    return LoraAdapter(
        factors=factors,
        alpha=float(alpha),
        rank=rank,
        base=str(config.get("base_model_name_or_path")),
        task=_task(config, where),
        target_modules=tuple(map(str, config.get("target_modules") or ())),
        head_modules=tuple(map(str, saved)),
        head=head,
        labels=labels,
    )


def _split_lora(
    tensors: Mapping[str, Tensor], rank: int, where: Path
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
    if lonely := sorted(a.keys() ^ b.keys()):
        raise BadAdapter(str(where), f"{lonely[0]} has only one of its two factors")
    factors = {name: (a_RI, b[name]) for name, a_RI in a.items()}
    for name, (a_RI, b_OR) in factors.items():
        if a_RI.ndim != 2 or b_OR.ndim != 2 or {a_RI.shape[0], b_OR.shape[1]} != {rank}:
            shapes = f"A {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}"
            raise BadAdapter(str(where), f"{name}: {shapes} are not of rank {rank}")
    return factors, head


def _read_sparse(folder: Path, labels: tuple[str, ...]) -> SparseAdapter:
    where = folder / SPARSE_CONFIG
    config = _json(where, {})
    try:
        shapes = {str(n): (int(s[0]), int(s[1])) for n, s in config["shapes"].items()}
        seed, density = int(config["seed"]), float(config["density"])
        if config["format"] != 1 or config["mask"] != "random":
            raise BadAdapter(str(where), "of a format or a mask that this version does not know")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as wrong:
        raise BadAdapter(str(where), f"not a sparse adapter: {wrong!r}") from None
    tensors = _tensors(folder / SPARSE_WEIGHTS)
    values = {
        name.removesuffix(".values"): tensor
        for name, tensor in tensors.items()
        if name.endswith(".values")
    }
    if values.keys() != shapes.keys():
        raise BadAdapter(str(where), "names other layers than the file of values holds")
    adapter = SparseAdapter(
        values=values,
        shapes=shapes,
        seed=seed,
        density=density,
        base=str(config.get("base_model_name_or_path")),
        task=_task(config, where),
        head={name: t for name, t in tensors.items() if not name.endswith(".values")},
        labels=labels,
    )
    _check_lengths(adapter, where)
    return adapter


def _check_lengths(adapter: SparseAdapter, where: Path) -> None:
    try:
        wanted = {name: mask.nnz for name, mask in adapter.masks().items()}
    except SloraError as wrong:
        raise BadAdapter(str(where), str(wrong)) from None
    for name, values in adapter.values.items():
        if values.shape != (wanted[name],):
            found = tuple(values.shape)
            raise BadAdapter(str(where), f"{name}: {found} values for {wanted[name]} entries")


def _task(config: Mapping[str, Any], where: Path) -> str:
    for task, name in TASK_TYPES.items():
        if config.get("task_type") == name:
            return task
    raise BadAdapter(str(where), f"task_type {config.get('task_type')!r} is not one that is read")


def _json(path: Path, kind: dict[str, Any] | list[Any]) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise BadAdapter(str(path), f"can't be read as JSON ({wrong})") from None
    if not isinstance(found, type(kind)):
        raise BadAdapter(str(path), f"holds a {type(found).__name__}, not a {type(kind).__name__}")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as wrong:
        raise BadAdapter(str(path), f"can't be read as safetensors ({wrong})") from None
    check_tensors(tensors, str(path))
    return tensors
