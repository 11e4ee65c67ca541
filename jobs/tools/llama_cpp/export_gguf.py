"""Export a committed adapter for llama.cpp: `adapter.gguf` or `model.gguf` in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoConfig

from jobs.errors import Fault, InputError
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.base import ObjectStore
from jobs.tools.adapter_base import find_base
from jobs.tools.load_adapter import load_adapted_model
from jobs.train.job_main import require_extra
from jobs.train.model.tokenizer import LOCAL
from slora.formats.merge import Adapter
from slora.formats.peft import LoraAdapter

ADAPTER_FILE, MODEL_FILE = "adapter.gguf", "model.gguf"


def write_lora_file(
    folder: Path, adapter: Adapter, store: ObjectStore, options: argparse.Namespace
) -> None:
    """Write a LoRA as `adapter.gguf`. Raise InputError for what llama.cpp has no place for."""
    with require_extra("gguf"):
        from jobs.tools.llama_cpp.gguf_lora import write_gguf_lora
    assert isinstance(adapter, LoraAdapter)
    manifest = resolve_adapter(store, options.adapter)
    _check_task(manifest.label, adapter.task)
    if adapter.head or adapter.tokens or adapter.experts:
        problem = f"{manifest.label} trains embedding rows, whole modules or fused experts"
        remedy = "Use --as gguf, which holds all of it."
        raise InputError([Fault("--as", f"{problem}; a GGUF LoRA holds factors alone", remedy)])
    config = AutoConfig.from_pretrained(find_base(manifest, options.base), **LOCAL)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf_lora(
        folder / ADAPTER_FILE,
        adapter.factors,
        scale=adapter.scale,
        rank=adapter.rank,
        config=config,
        name=manifest.label,
        dtype=options.dtype or "float32",
    )


def write_model_file(folder: Path, store: ObjectStore, options: argparse.Namespace) -> str:
    """Write base and adapter as `model.gguf`, and return the adapter's label. Raise InputError."""
    with require_extra("gguf"):
        from jobs.tools.llama_cpp.gguf_model import write_gguf_model
    adapted = load_adapted_model(store, options.adapter, base=options.base, merged=True)
    _check_task(adapted.manifest.label, adapted.task)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf_model(
        folder / MODEL_FILE,
        adapted.model,
        adapted.tokenizer,
        name=adapted.manifest.label,
        dtype=options.dtype or "float16",
    )
    return adapted.manifest.label


def _check_task(label: str, task: str) -> None:
    if task != "causal-lm":
        problem = f"{label} has the task {task}, and llama.cpp answers with language models"
        raise InputError([Fault("--as", problem, "Use --as merged.")])
