"""The kernels of a run's sparse products: probed once, and the same to the end and again.

A run writes them to its folder, one file for each kind of device, so that every worker, later
attempt and repetition on such a device sums in the same order. The machine's cache spares later
runs the probe.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jobs.errors import AlreadyExists, NotInStore
from jobs.spec.schema import RunSpec
from jobs.store.runs.run_store import KERNELS_PREFIX, RunStore
from jobs.store.settings import read_store_settings
from slora.kernels.choice import KernelChoices, read_choices
from slora.kernels.device_identity import identify_device
from slora.layers.install import choose_kernels, use_kernels

MAX_PROBED_TOKENS = 2048
"""More tokens change no choice, only the probe's time and memory."""


def settle_kernels(model: nn.Module, spec: RunSpec, runs: RunStore) -> dict[str, dict[str, Any]]:
    """Choose the kernels of the installed sparse layers, and return the choices by kind.

    Choices in the run's folder hold, then those in the machine's cache; the rest is probed.
    Raise StoreError.
    """
    device = next(iter(model.parameters())).device
    key = runs.key(f"{KERNELS_PREFIX}{_name_device(device)}.json")
    settled = _read_recorded(runs, key)
    if settled is None:
        cached = _find_cache_file(device)
        known = _read_cache(cached)
        tokens = min(spec.train.micro_batch_size * spec.data.max_length, MAX_PROBED_TOKENS)
        choices = choose_kernels(model, tokens=tokens, known=known)
        if not choices.describe():
            # All products are small, or of blocks: there is nothing to keep.
            return {}
        known.update(choices)
        _write_cache(known, cached)
        settled = _record(choices, runs, key)
    use_kernels(model, settled)
    return settled.describe()


def _name_device(device: torch.device) -> str:
    threads = f"-{torch.get_num_threads()}" if device.type == "cpu" else ""
    return f"{identify_device(device)}{threads}"


def _read_recorded(runs: RunStore, key: str) -> KernelChoices | None:
    try:
        return read_choices(json.loads(runs.store.get(key)))
    except (NotInStore, ValueError):
        return None


def _record(choices: KernelChoices, runs: RunStore, key: str) -> KernelChoices:
    """Write the choices and return them, or those of a worker that was faster."""
    data = json.dumps(choices.describe(), indent=2).encode()
    try:
        runs.store.put(key, data, create_only=True)
    except AlreadyExists:
        if (existing := _read_recorded(runs, key)) is not None:
            return existing
        runs.store.put(key, data)
    return choices


def _find_cache_file(device: torch.device) -> Path:
    return read_store_settings().cache / "kernels" / f"{_name_device(device)}.json"


def _read_cache(path: Path) -> KernelChoices:
    try:
        return read_choices(json.loads(path.read_text()))
    except (OSError, ValueError):
        return KernelChoices()


def _write_cache(choices: KernelChoices, path: Path) -> None:
    """Keep the choices. A full or read-only disk only means that the next run probes again."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(choices.describe()))
        temporary.replace(path)
    except OSError:
        return
