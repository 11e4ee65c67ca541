"""The identity of a device and of the libraries that compute on it, for results of a probe."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch

from slora.kernels.processor import read_processor

LIBRARIES = ("torch", "numba", "triton")


def identify_device(device: torch.device) -> str:
    """Return a short digest of the device's model and of the libraries' versions."""
    parts = [_describe_model(device), *map(_find_version, LIBRARIES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _describe_model(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    processor = read_processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return " ".join((processor.name, *processor.flags, capability))


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
