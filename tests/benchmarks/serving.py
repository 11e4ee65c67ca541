"""Sparse adapters in a real vLLM server: are they the merged model, and what does a swap cost?

`python -m tests.benchmarks.serving --json`. In float32 on the chat model of `make demo`, or on a
random Llama with --tiny: log-probabilities of a served sparse adapter against the merged model's;
A to B and back, by the digests of all weights; memory over 100 swaps; seconds of a swap beside
those of a reload of the server; and a LoRA with sparse factors of rank 32 in a stock server against
PEFT. It exits with 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from infra.local.serving_environment import find_serving_python
from slora.formats.base_files import digest_files, list_base_files
from slora.formats.merge import merge_adapter
from slora.formats.peft import LoraAdapter, SparseAdapter, write_lora, write_sparse
from slora.layers.shapes import LayerShape
from slora.layers.sparse_factors import expand_to_dense
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import draw_random_mask
from tests.benchmarks.machine import describe_machine
from tests.vllm_server import MAKE_IT, PROMPT, VllmServer, run_vllm

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/models/smollm2-135m-instruct"
TOLERANCE = 1e-3
"""Of a log-probability, in float32: both sides sum in other orders."""
SWAPS, WARM_UP = 100, 10
"""Swaps of the leak, and those before it: allocators keep what the first ones took."""
MAX_GROWTH = 32e6
"""Bytes: less than one adapter's patches take on the chat model."""
RANK, FACTOR_DENSITY = 32, 0.125
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and judge. Exit codes: 1 a figure fails, 3 there is no vLLM."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--tiny", action="store_true", help="use a random Llama of two layers")
    options = parser.parse_args(arguments)
    if not find_serving_python().exists():
        print(f"no environment for serving; make it: {MAKE_IT}", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="slora-serving-bench-") as scratch:
        folder = Path(scratch)
        figures = measure_serving(_make_tiny(folder) if options.tiny else MODEL, folder)
    failures = judge(figures)
    report = {"machine": describe_machine(), **figures, "failed": failures}
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:28} {value}")
    return 1 if failures else 0


def measure_serving(model: Path, folder: Path) -> dict[str, Any]:
    """Return all figures of a model."""
    shapes = read_shapes(model)
    adapters = {name: make_sparse(model, shapes, seed) for seed, name in enumerate(("a", "b"), 1)}
    for name, adapter in adapters.items():
        write_sparse(folder / name, adapter)
    lora = make_sparse_factors(model, shapes)
    write_lora(folder / "lora", lora)
    with run_vllm(model, folder) as server:
        figures = _measure_swaps(server, model, folder, adapters)
    started = time.monotonic()
    lora_variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with run_vllm(model, folder, is_stock=True, variables=lora_variables) as server:
        figures["reload_s"] = round(time.monotonic() - started, 2)
        server.post("/v1/load_lora_adapter", lora_name="f", lora_path=str(folder / "lora"))
        figures["lora_difference"] = find_difference(server.score("f"), score_peft(model, folder))
        figures["lora_effect"] = find_difference(server.score("f"), server.score("base"))
    return figures


def judge(figures: dict[str, Any]) -> list[str]:
    """Return what does not hold."""
    checks = {
        "sparse_difference": figures["sparse_difference"] <= TOLERANCE,
        "sparse_effect": figures["sparse_effect"] > 100 * TOLERANCE,
        "base_restored": figures["base_restored"],
        "swap_is_repeatable": figures["swap_is_repeatable"],
        "growth_bytes": figures["growth_bytes"] <= MAX_GROWTH,
        "swap_s": figures["swap_s"] < figures["reload_s"],
        "lora_difference": figures["lora_difference"] <= TOLERANCE,
        "lora_effect": figures["lora_effect"] > 10 * TOLERANCE,
    }
    return [name for name, holds in checks.items() if not holds]


def _measure_swaps(
    server: VllmServer, model: Path, folder: Path, adapters: dict[str, SparseAdapter]
) -> dict[str, Any]:
    digest = digest_files(model, list_base_files(model))
    before, base = server.digest_weights(), server.score("base")
    loads, differences = [], []
    for name, adapter in adapters.items():
        started = time.monotonic()
        path = str(folder / name)
        server.post("/slora/load", name=f"chat@{name}", path=path, base_digest=digest)
        loads.append(time.monotonic() - started)
        point(server, f"chat@{name}")
        differences.append(find_difference(server.score("chat"), score_merged(model, adapter)))
    effect = find_difference(server.score("chat"), base)
    with_b = server.digest_weights()
    point(server, "chat@a")
    point(server, "chat@b")
    is_repeatable = server.digest_weights() == with_b != before
    point(server, None)
    is_restored = server.digest_weights() == before and server.score("base") == base
    seconds, memory = [], 0
    for number in range(WARM_UP + SWAPS):
        if number == WARM_UP:
            memory = server.measure_memory()
        seconds.append(point(server, f"chat@{'ab'[number % 2]}"))
        server.score("chat")
    growth = server.measure_memory() - memory
    point(server, None)
    return {
        "model": model.name,
        "values": sum(values.numel() for values in adapters["a"].values.values()),
        "sparse_difference": max(differences),
        "sparse_effect": effect,
        "base_restored": is_restored and server.digest_weights() == before,
        "swap_is_repeatable": is_repeatable,
        "load_s": round(max(loads), 3),
        "swap_s": round(statistics.median(seconds[WARM_UP:]), 3),
        "swaps": SWAPS,
        "memory_bytes": memory,
        "growth_bytes": growth,
    }


def point(server: VllmServer, version: str | None) -> float:
    """Let the public name answer with a version, and return the seconds that took."""
    started = time.monotonic()
    server.post("/slora/names", name="chat", to=version)
    return time.monotonic() - started


def find_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the largest difference of two rows of log-probabilities."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def read_shapes(model: Path) -> dict[str, LayerShape]:
    """Return the shape of each linear layer of a model's file."""
    with safe_open(model / "model.safetensors", framework="pt") as reader:
        return {
            name.removesuffix(".weight"): LayerShape(*reader.get_slice(name).get_shape())
            for name in sorted(reader.keys())
            if name.removesuffix(".weight").rpartition(".")[2] in TARGETS
        }


def make_sparse(model: Path, shapes: dict[str, LayerShape], seed: int) -> SparseAdapter:
    """Return an adapter of 1 % of each layer's entries, its mask stored as a seed."""
    masks = {
        name: draw_random_mask(seed=seed, name=name, shape=shape, density=0.01)
        for name, shape in shapes.items()
    }
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: torch.randn(mask.nnz, generator=generator) * 0.2 for name, mask in masks.items()
    }
    return SparseAdapter(
        values, masks, base=str(model), task="causal-lm", seed=seed, density=0.01
    )  # fmt: skip


def make_sparse_factors(model: Path, shapes: dict[str, LayerShape]) -> LoraAdapter:
    """Return a LoRA of kind `lora` with `factor_density`: most entries of A and B are zero."""
    rule, factors = FactorMaskRule("balanced", FACTOR_DENSITY, 0), {}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        pair: list[Tensor] = []
        sizes = ((RANK, shape[1]), (shape[0], RANK))
        for positions, size in zip(rule.draw(name, shape, RANK), sizes, strict=True):
            values = torch.randn(positions.numel(), generator=generator) * 0.05
            pair.append(expand_to_dense(values, positions, size))
        factors[name] = (pair[0], pair[1])
    return LoraAdapter(
        factors, alpha=2 * RANK, rank=RANK, base=str(model), task="causal-lm",
        target_modules=TARGETS,
    )  # fmt: skip


def score_merged(model: Path, adapter: SparseAdapter) -> list[float]:
    """Return the log-probabilities of the prompt in transformers, with the adapter merged."""
    loaded = _load(model)
    merge_adapter(loaded, adapter)
    return _score(loaded)


def score_peft(model: Path, folder: Path) -> list[float]:
    """Return those of PEFT with the LoRA's folder."""
    from peft import PeftModel

    return _score(PeftModel.from_pretrained(_load(model), str(folder / "lora")))


def _load(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@torch.no_grad()
def _score(model: Any) -> list[float]:
    logits = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    return [float(logits[index, token]) for index, token in enumerate(PROMPT[1:])]


def _make_tiny(folder: Path) -> Path:
    from tests.tiny import tiny_chat_model

    return tiny_chat_model(folder / "tiny", hidden_size=128, intermediate_size=256)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
