"""`python -m tests.benchmarks.packed_attention [--dtype ...] [--rows ...]`: packed rows with a mask
of L x L, and by row.

One batch of sequences with packed rows goes forward and backward through a model's layers, without
logits, with transformers' SDPA and with attention by row in turns, in one process. Medians of the
seconds, and the largest peak of the process's memory above the model, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from jobs.train.attention.row_attention import use_full_attention, use_row_attention
from jobs.train.model.base_model import load_model

MODEL = ".cache/models/smollm2-135m-instruct"
KERNELS = {"sdpa with masks": use_full_attention, "by row": use_row_attention}
COLUMNS = ("type", "tokens of a row", "attention", "seconds", "of CPU", "MB above", "loss")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> int:
    """Print a table for each type and length of the rows."""
    options = _parse_arguments()
    torch.set_num_threads(options.threads)
    table = Table(*COLUMNS)
    for dtype in options.dtype:
        model = load_model(options.model, task="causal-lm", dtype=dtype)
        model.requires_grad_(False)
        for tokens in options.rows:
            positions_mL = pack_positions(options.sequences, options.length, tokens)
            results: dict[str, list[tuple[float, ...]]] = {name: [] for name in KERNELS}
            for turn in range(options.repeats + 1):
                for name, use in KERNELS.items():
                    use(model)
                    result = measure_step(model, positions_mL)
                    print(
                        f"{dtype}, rows of {tokens}, turn {turn} of {options.repeats}, {name}: "
                        f"{result[0]:.2f} s",
                        file=sys.stderr,
                    )
                    if turn:
                        results[name].append(result)
            for name, steps in results.items():
                seconds, cpu_seconds, megabytes, losses = zip(*steps, strict=True)
                table.add_row(
                    dtype,
                    str(tokens),
                    name,
                    f"{statistics.median(seconds):.2f}",
                    f"{statistics.median(cpu_seconds):.2f}",
                    f"{max(megabytes):,.0f}",
                    f"{losses[0]:.6f}",
                )
    Console(width=100).print(table)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512], help="mean tokens")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def pack_positions(sequences: int, length: int, tokens: int) -> torch.Tensor:
    """Return position ids [m, L] of packed rows of half to one and a half times the mean length."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(sequences):
        line: list[int] = []
        while len(line) < length:
            drawn = torch.randint(tokens // 2, 3 * tokens // 2, (), generator=generator)
            line += range(min(int(drawn), length - len(line)))
        lines.append(line)
    return torch.tensor(lines)


def measure_step(model: Any, positions_mL: torch.Tensor) -> tuple[float, ...]:
    """Return the seconds of forward and backward, those of the processor's cores, which a busy
    machine lengthens less, the peak above the memory before it in MB, and the loss: the same with
    every kernel, up to rounding.
    """
    generator = torch.Generator().manual_seed(0)
    ids_mL = torch.randint(5, 250, positions_mL.shape, generator=generator)
    embeddings = model.get_input_embeddings()(ids_mL).detach().requires_grad_()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # Sets the high-water mark to what is resident now.
    CLEAR.write_text("5")
    before = _read_status("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    hidden = model.get_decoder()(
        inputs_embeds=embeddings, position_ids=positions_mL, use_cache=False
    ).last_hidden_state
    loss = hidden.float().square().mean()
    loss.backward()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return seconds, cpu_seconds, (_read_status("VmHWM") - before) / 1e3, loss.item()


def _read_status(name: str) -> int:
    """Return a line of the process's status, in kB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    raise SystemExit(main())
