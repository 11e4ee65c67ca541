"""The attention kernel that a spec asks for, checked against the model's class and the workers.

`auto` is the kernel that transformers picks for the class; where that is SDPA, and a trial of the
architecture finds it exact, SDPA within each row without a mask (`jobs.train.attention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from jobs.errors import Fault
from jobs.inspect.model_description import ModelDescription
from jobs.plan.packing_choice import PackingChoice
from jobs.spec.schema import RunSpec

BY_ROW = "rows"
"""The kernel of attention by row, as a model's config and a plan name it."""
TEXTS = {
    BY_ROW: "SDPA within each row, without a mask",
    "sdpa": "SDPA",
    "eager": "matrix products, without a kernel",
    "flash_attention_2": "FlashAttention 2",
    "flex_attention": "flex_attention of torch",
}
KERNELS = {"flex": "flex_attention"}
"""Transformers' names of the values of model.attention that have others."""
REMEDY = "Use auto."


def check_attention(spec: RunSpec, description: ModelDescription) -> Iterator[Fault]:
    """Check that the model's class has the kernel of the spec, and that the workers can run it."""
    name = spec.model.attention
    if name == "auto":
        return
    key, kernels = "model.attention", description.kernels
    if name not in kernels:
        problem = f"{name}, which {description.model_class} of transformers does not support"
        yield Fault(key, problem, f"Use auto or {' or '.join(kernels)}.")
    elif not spec.cluster.gpus_per_worker and name == "flash_attention_2":
        yield Fault(key, f"{name} runs on GPUs, and cluster.gpus_per_worker is 0", REMEDY)
    elif not spec.cluster.gpus_per_worker and name == "flex":
        problem = "torch's flex_attention has no backward on CPUs, and cluster.gpus_per_worker is 0"
        yield Fault(key, problem, REMEDY)
    elif name == "flash_attention_2":
        if spec.model.dtype == "float32":
            problem = f"{name} computes in bfloat16, and model.dtype is float32"
            yield Fault(key, problem, "Use model.dtype: bfloat16, or attention: auto.")
        # A control plane without torch is no worker: it cannot tell which packages they have.
        if find_spec("torch") is not None and find_spec("flash_attn") is None:
            problem = f"{name} needs the package flash-attn, which is not installed"
            yield Fault(key, problem, f"Install flash-attn. Or: {REMEDY.lower()}")


def name_kernel(name: str, default: str) -> str:
    """Return transformers' name of the kernel of a spec, whose default it picks for the class."""
    return default if name == "auto" else KERNELS.get(name, name)


def name_attention(default: str, packing: PackingChoice) -> str:
    """Return the kernel of a run: that of the model's class, or attention by row."""
    return BY_ROW if packing.by_row else default


def holds_masks(kernel: str, window: int | None, max_length: int) -> bool:
    """Return whether a kernel holds masks of L x L. Rows that exceed a window need one even where
    others do not.
    """
    exceeds_window = window is not None and max_length > window
    return kernel in ("sdpa", "eager") or (kernel == BY_ROW and exceeds_window)


def describe_attention(name: str) -> str:
    """Return a kernel and what it computes, for people."""
    return f"{name}: {TEXTS[name]}" if name in TEXTS else name
