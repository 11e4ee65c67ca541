"""The identity of a device and of the libraries that compute on it, for results of a probe."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
LIBRARIES = ("torch", "numba", "triton")


def identify_device(device: torch.device) -> str:
    """Return a short digest of the device's model and of the libraries' versions."""
    parts = [_describe_model(device), *map(_find_version, LIBRARIES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _describe_model(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return _read_cpu_model() + torch.backends.cpu.get_cpu_capability()


def _read_cpu_model() -> str:
    """Return the lines that tell one kind of processor from another; empty where there are none.

    The flags count too: a virtual machine's model may be a brand's name only.
    """
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    keys = ("model name", "flags", "Features")
    first = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return "\n".join(first.get(key, "") for key in keys)


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
