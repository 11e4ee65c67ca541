"""`python -m tests.benchmarks.step_time [--json]`: a training step of ours beside PEFT's.

One process, one random Llama of about 55 M parameters (hidden 768, 6 layers), 4 x 128 tokens, every
linear layer but the head trained, in float32 and then in bfloat16. The variants take turns, a step
each, so that a slow moment of the machine hits all alike; medians are compared. All use torch's
AdamW as it comes (`--fused` for its fused one). The floor is a frozen model: forward, the same
loss, and backward to the activations only, which no adapter can do without.

Memory is measured in a process of its own for each variant: the peak of resident memory (of
allocated memory on a GPU) in three steps, above the frozen model.

Where a limit is missed, the operations that cost most above the floor are printed (`--profile`
prints them anyway). `--size 1b --device cuda` is the same table on a Llama of about 1 B parameters,
`--size 8b` on one of 8 B.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from slora.handoff.low_rank_init import LowRankInit
from slora.layers.install import (
    choose_kernels,
    freeze,
    install_lora,
    install_low_rank,
    install_sparse,
    iter_adapter_layers,
    use_kernels,
)
from slora.layers.lora import init_factors
from slora.layers.sparse import SparseLinear
from slora.layers.targets import find_targets
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import BlockMask, Mask, draw_random_mask
from tests.benchmarks.machine import describe_machine

SIZES = {
    "55m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
            "num_attention_heads": 12, "vocab_size": 8192},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
BATCH = {"55m": (4, 128), "1b": (8, 1024), "8b": (4, 2048)}
"""Sequences and their tokens."""
RANK, ALPHA, DENSITY = 8, 16, 0.01
FACTOR_RANK, FACTOR_DENSITY = 32, 1 / 8
"""Of the sparse factors: as many trained numbers as LoRA of rank 4."""
SHIRA_RANK = 5
"""PEFT takes whole numbers only: at 5 its mask has 3 % more entries than a density of 1 %."""
ROUNDS, WARM_UP, MEMORY_STEPS, MEMORY_RUNS = 15, 2, 3, 3
LIMITS = {
    "float32": {
        "sparse_random": 1.12, "sparse_blocks": 1.05, "lora": 1.06, "sparse_factors": 1.10,
    },
    "bfloat16": {
        "sparse_random": 1.25, "sparse_blocks": 1.12, "lora": 1.10, "sparse_factors": 1.10,
    },
}  # fmt: skip
"""To reach on 2 cores: a variant's median over the floor's, at most."""
FASTER = {
    "float32": {("peft_shira", "sparse_random"): 1.25, ("peft_lora", "lora"): 1.05},
    "bfloat16": {("peft_shira", "sparse_random"): 1.0, ("peft_lora", "lora"): 1.0},
}
"""To reach: the first one's median over the second one's, at least."""
PROFILED_STEPS, PROFILED_ROWS = 3, 12
DENSE_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
"""Operations that are one line of the profile: which of them computes a product differs."""

Step = Callable[[], None]


def main() -> int:
    """Exit code 1 where a limit is missed; the table says by how much."""
    options = _parser().parse_args()
    # Other libraries' warnings of their own deprecations do not belong in this table.
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.memory_of:
        options.dtype = options.dtypes[0]
        print(json.dumps(_peak_mb(options, options.memory_of)))
        return 0
    results, misses = {}, []
    for dtype in options.dtypes:
        options.dtype = dtype
        figures, kernels = _measure_variants(options)
        results[dtype] = {"variants": figures, "kernels": kernels}
        dtype_misses = list(_list_misses(figures, dtype))
        misses += dtype_misses
        if not options.json:
            Console(width=80).print(_table(figures, dtype))
        if dtype_misses or options.profile:
            print(_profile(options), file=sys.stderr)
    if options.json:
        print(json.dumps({"machine": describe_machine(), **results}))
    else:
        print(describe_machine())
    for line in misses:
        print(line, file=sys.stderr)
    return int(bool(misses))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", choices=SIZES, default="55m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fused", action="store_true", help="torch's fused AdamW for all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser


def _measure_variants(
    options: argparse.Namespace,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Return each variant's figures, and the kernels that the sparse variants chose."""
    models = {name: VARIANTS[name](_base(options)) for name in options.only}
    seconds = _time_steps({name: _stepper(model, options) for name, model in models.items()},
                          options.rounds)  # fmt: skip
    kernels = {
        kind: choice["kernel"]
        for model in models.values()
        for _, layer in iter_adapter_layers(model)
        if isinstance(layer, SparseLinear)
        for kind, choice in layer.choices.describe().items()
    }
    del models
    gc.collect()
    figures = {
        name: {"step_s": statistics.median(values), "peak_mb": _memory(options, name)}
        for name, values in seconds.items()
    }
    return figures, kernels


def _profile(options: argparse.Namespace) -> str:
    """Return the operations of each variant of ours that cost most above the floor's."""
    lines = []
    floor = _profile_operations("floor", options)
    for name in options.only:
        if name not in LIMITS[options.dtype]:
            continue
        own = _profile_operations(name, options)
        excess = {key: own[key] - floor.get(key, 0.0) for key in own}
        ranked = sorted(excess.items(), key=lambda item: -item[1])[:PROFILED_ROWS]
        lines.append(f"{name}, {options.dtype}: {sum(own.values()) - sum(floor.values()):.1f} ms")
        lines += [f"  {milliseconds:8.2f} ms  {key}" for key, milliseconds in ranked]
    return "\n".join(["above the floor, by operation:", *lines])


def _profile_operations(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds a step of each operation itself, without what it calls."""
    step = _stepper(VARIANTS[name](_base(options)), options)
    _repeat(step, WARM_UP)
    with torch.profiler.profile() as profile:
        _repeat(step, PROFILED_STEPS)
    attribute = "self_device_time_total" if options.device != "cpu" else "self_cpu_time_total"
    milliseconds: Counter[str] = Counter()
    for event in profile.key_averages():
        name = "dense products" if event.key in DENSE_PRODUCTS else event.key
        milliseconds[name] += getattr(event, attribute) / 1e3 / PROFILED_STEPS
    return milliseconds


def _base(options: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[options.size], use_cache=False)
    with torch.device(options.device):
        model = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    model.requires_grad_(False)
    return model.eval()


def _shapes(model: Any) -> dict[str, tuple[int, int]]:
    layers = find_targets(model, "all-linear", head=[model.lm_head])
    return {n: (layer.out_features, layer.in_features) for n, layer in layers.items()}


def _floor(model: Any) -> Any:
    # The activations' gradients need something below to end in.
    model.model.embed_tokens.register_forward_hook(lambda *told: told[2].requires_grad_(True))
    return model


def _sparse(model: Any, mask_of: Callable[[str, tuple[int, int]], Mask]) -> Any:
    install_sparse(model, {name: mask_of(name, shape) for name, shape in _shapes(model).items()})
    return model


def _random(name: str, shape: tuple[int, int]) -> Mask:
    return draw_random_mask(seed=0, name=name, shape=shape, density=DENSITY)


def _block(name: str, shape: tuple[int, int]) -> Mask:
    stream = torch.Generator().manual_seed(len(name))
    sides = [round(side * DENSITY**0.5) for side in shape]
    rows, columns = (
        torch.randperm(side, generator=stream)[:count].sort().values
        for side, count in zip(shape, sides, strict=True)
    )
    return BlockMask(shape, rows, columns)


def _lora(model: Any) -> Any:
    factors = {
        name: init_factors(seed=0, name=name, shape=shape, rank=RANK)
        for name, shape in _shapes(model).items()
    }
    install_lora(model, factors, scale=ALPHA / RANK)
    return model


def _sparse_factors(model: Any) -> Any:
    rule = FactorMaskRule("balanced", FACTOR_DENSITY, seed=0)
    starts = {
        name: LowRankInit(*init_factors(seed=0, name=name, shape=shape, rank=FACTOR_RANK))
        for name, shape in _shapes(model).items()
    }
    install_low_rank(model, starts, scale=ALPHA / RANK, factor_mask=rule)
    return model


def _peft(model: Any, **config: Any) -> Any:
    from peft import LoraConfig, ShiraConfig, get_peft_model

    names = sorted({name.rpartition(".")[2] for name in _shapes(model)})
    kind = LoraConfig if "lora_alpha" in config else ShiraConfig
    return get_peft_model(model, kind(target_modules=names, **config)).eval()


def _full(model: Any) -> Any:
    freeze(model, trainable=[model])
    return model


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "floor": _floor,
    "sparse_random": lambda model: _sparse(model, _random),
    "sparse_blocks": lambda model: _sparse(model, _block),
    "lora": _lora,
    "sparse_factors": _sparse_factors,
    "peft_lora": lambda model: _peft(model, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0),
    "peft_shira": lambda model: _peft(model, r=SHIRA_RANK, random_seed=0),
    "full": _full,
}


def _stepper(model: nn.Module, options: argparse.Namespace) -> Step:
    """One whole optimiser step on a fixed batch."""
    rows, tokens = BATCH[options.size]
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZES[options.size]["vocab_size"], (rows, tokens), generator=stream)
    ids = ids.to(options.device)
    use_kernels(model, choose_kernels(model, tokens=rows * tokens))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=options.fused) if trained else None

    def step() -> None:
        logits: Tensor = model(input_ids=ids).logits
        flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
        nn.functional.cross_entropy(flat, ids[:, 1:].reshape(-1)).backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if options.device != "cpu":
            torch.cuda.synchronize()

    return step


def _time_steps(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        if sys.stderr.isatty():
            print(f"round {number + 1}/{WARM_UP + rounds}", file=sys.stderr)
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _memory(options: argparse.Namespace, name: str) -> float:
    """The median of a few processes: an allocator's peak differs from run to run."""
    words = [sys.executable, "-m", "tests.benchmarks.step_time", "--memory-of", name]
    words += ["--fused"] if options.fused else []
    words += ["--dtypes", options.dtype]
    for option in ("size", "device", "threads"):
        words += [f"--{option}", str(getattr(options, option))]
    peaks = [
        json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        for _ in range(MEMORY_RUNS)
    ]
    return float(statistics.median(peaks))


def _peak_mb(options: argparse.Namespace, name: str) -> float:
    """Peak memory in MB above the frozen model, what the variant itself adds counted."""
    model = _base(options)
    gc.collect()
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _repeat(_stepper(VARIANTS[name](model), options), MEMORY_STEPS)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = psutil.Process().memory_info().rss
    step = _stepper(VARIANTS[name](model), options)
    # From here on the kernel notes the peak anew: imports and set-up are not the step's.
    Path("/proc/self/clear_refs").write_text("5")
    _repeat(step, MEMORY_STEPS)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return (peak * 1024 - before) / 1e6


def _repeat(step: Step, times: int) -> None:
    for _ in range(times):
        step()


def _table(figures: dict[str, dict[str, float]], dtype: str) -> Table:
    table = Table(title=f"a training step in {dtype}, medians")
    for column in ("variant", "seconds", "x floor", "limit", "peak MB above the model"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    floor = figures.get("floor", {"step_s": float("nan")})["step_s"]
    for name, values in figures.items():
        ratio, limit = values["step_s"] / floor, LIMITS[dtype].get(name)
        cells = f"{values['step_s']:.4f}", f"{ratio:.3f}", f"{limit:.2f}" if limit else ""
        table.add_row(name, *cells, f"{values['peak_mb']:.0f}")
    return table


def _list_misses(figures: dict[str, dict[str, float]], dtype: str) -> Iterable[str]:
    for name, limit in LIMITS[dtype].items():
        if {name, "floor"} <= figures.keys():
            ratio = figures[name]["step_s"] / figures["floor"]["step_s"]
            if ratio > limit:
                yield f"missed: {dtype}, {name} is {ratio:.3f} x the floor, limit {limit}"
    for (other, name), limit in FASTER[dtype].items():
        if {name, other} <= figures.keys():
            ratio = figures[other]["step_s"] / figures[name]["step_s"]
            if ratio < limit:
                yield f"missed: {dtype}, {name} is {ratio:.3f} x faster than {other}, goal {limit}"
    for name in LIMITS[dtype]:
        if {name, "peft_lora"} <= figures.keys():
            own, other = figures[name]["peak_mb"], figures["peft_lora"]["peak_mb"]
            if own > other:
                yield f"missed: {dtype}, {name} peaks at {own:.0f} MB, peft_lora at {other:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
