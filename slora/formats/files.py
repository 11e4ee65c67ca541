"""Read and write an adapter's files: JSON and safetensors, checked, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slora.errors import BadAdapter
from slora.formats.peft_tasks import SINGLE_LABEL, TASK_TYPES, dump_labels, parse_labels
from slora.layers.token_rows import SUFFIX

LABELS = "labels.json"


def check_tensors(tensors: Mapping[str, Tensor], path: str) -> None:
    """Raise BadAdapter for an empty set, an empty tensor or a value that is not finite."""
    if not tensors:
        raise BadAdapter(path, "it has no tensors")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise BadAdapter(path, f"{name} is empty, of shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise BadAdapter(path, f"{name} contains values that are not finite")


def write_files(
    folder: Path,
    config_name: str,
    config: Mapping[str, Any],
    weights_name: str,
    tensors: Mapping[str, Tensor],
    labels: tuple[str, ...],
    problem_type: str,
) -> None:
    """Write the config, the tensors and the labels. Raise BadAdapter before anything is written."""
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_tensors(cpu_tensors, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if labels:
        text = json.dumps(dump_labels(labels, problem_type), ensure_ascii=False)
        (folder / LABELS).write_text(f"{text}\n")
    (folder / config_name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(cpu_tensors, folder / weights_name, metadata={"format": "pt"})


def read_labels(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return a classifier's labels in the order of their numbers, and its problem; no labels if
    there is no file. Raise BadAdapter.
    """
    path = folder / LABELS
    if not path.exists():
        return (), SINGLE_LABEL
    try:
        return parse_labels(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BadAdapter(str(path), f"it can't be read as labels ({error})") from None


def read_task(config: Mapping[str, Any], path: Path) -> str:
    """Return the task the adapter was trained for. Raise BadAdapter."""
    for task, name in TASK_TYPES.items():
        if config.get("task_type") == name:
            return task
    raise BadAdapter(str(path), f"task_type {config.get('task_type')!r} is not supported")


def read_revision(config: Mapping[str, Any]) -> str | None:
    """Return the commit of the base on the hub; None if the config names none."""
    revision = config.get("revision")
    return revision if isinstance(revision, str) else None


def read_token_ids(value: Any, head: Mapping[str, Tensor], path: str) -> dict[str, tuple[int, ...]]:
    """Return the ids of trained embedding rows by module. Raise BadAdapter without their rows."""
    if not isinstance(value or {}, dict):
        raise BadAdapter(path, f"{value!r} does not name the modules of its trained tokens")
    tokens = {str(name): tuple(map(int, ids)) for name, ids in (value or {}).items()}
    for name, ids in tokens.items():
        rows = head.get(f"{name}{SUFFIX}")
        if rows is None or rows.ndim != 2 or len(rows) != len(ids) or min(ids, default=0) < 0:
            raise BadAdapter(path, f"{name} has no rows for its {len(ids)} trained tokens")
    return tokens


def read_json(path: Path, example: dict[str, Any] | list[Any]) -> Any:
    """Return the file's value, of the type of `example`. Raise BadAdapter."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadAdapter(str(path), f"it can't be read as JSON ({error})") from None
    if not isinstance(value, type(example)):
        raise BadAdapter(
            str(path), f"it contains a {type(value).__name__}, not a {type(example).__name__}"
        )
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of the file, none empty, all finite. Raise BadAdapter."""
    try:
        with safe_open(path, framework="pt") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadAdapter(str(path), f"it can't be read as safetensors ({error})") from None
    check_tensors(tensors, str(path))
    return tensors
