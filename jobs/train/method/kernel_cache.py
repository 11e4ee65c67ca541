"""The kernels that a probe chose on a machine, kept in the cache for later runs there."""

from __future__ import annotations

from pathlib import Path

import torch

from jobs.store.settings import read_store_settings
from slora.kernels.choice import KernelChoices, load_choices
from slora.kernels.device_identity import identify_device


def read_choices(device: torch.device) -> KernelChoices:
    """Return the choices of earlier runs on such a device; none if there are none."""
    return load_choices(_find_file(device))


def write_choices(choices: KernelChoices, device: torch.device) -> None:
    """Keep the choices. A full or read-only disk only means that the next run probes again."""
    try:
        choices.save(_find_file(device))
    except OSError:
        return


def _find_file(device: torch.device) -> Path:
    return read_store_settings().cache / "kernels" / f"{identify_device(device)}.json"
