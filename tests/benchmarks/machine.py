"""The machine that a figure is from, in one line."""

from __future__ import annotations

import os
from pathlib import Path

import torch

EXTENSIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Extensions of a processor that decide how fast its products are, the best first."""


def describe_machine() -> str:
    """Return the processor, its cores and best extension for products, and torch's version."""
    info = Path("/proc/cpuinfo").read_text()
    lines = [line.partition(":")[::2] for line in info.splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in reversed(lines)}
    flags = facts.get("flags", "").split()
    extension = next((name for flag, name in EXTENSIONS.items() if flag in flags), "no AVX2")
    model = " ".join(facts.get("model name", "unknown processor").split())
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {extension}, torch {torch.__version__}"
