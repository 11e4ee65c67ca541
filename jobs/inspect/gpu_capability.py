"""The compute capability of this machine's GPUs. No torch."""

from __future__ import annotations

import subprocess

QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
QUERY_TIMEOUT_S = 30


def list_gpu_capabilities() -> tuple[float, ...]:
    """Return the compute capability of each GPU; empty if the driver's tool cannot tell."""
    try:
        done = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
        )
        return tuple(float(line) for line in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
