"""The machine that a figure is from, in one line."""

from __future__ import annotations

import os

import torch

from slora.kernels.processor import read_processor


def describe_machine() -> str:
    """Return the processor with its instructions for bfloat16, its cores, and torch's version."""
    processor, cores = read_processor(), len(os.sched_getaffinity(0))
    instructions = " and ".join(processor.flags) or "no instructions for bfloat16"
    capability = torch.backends.cpu.get_cpu_capability()
    version = f"torch {torch.__version__}"
    return f"{processor.name}, {cores} cores, {capability}, {instructions}, {version}"
