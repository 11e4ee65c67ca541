"""`python -m tests.benchmarks.peers [--json]`: `slora train` beside TRL's SFTTrainer with PEFT.

Both train a LoRA of rank 8 on all linear layers of SmolLM2 with two processes of one thread: 28
steps of 8 texts of 128 tokens, the same texts in the same order. TRL runs under torchrun, in a venv
of its own that is made on first use. The commands take turns; medians of all runs are compared.

Memory is measured from outside, the same way for both: the peak of resident memory of the two
processes that train, added; and the peak of all processes of a command together, Ray's included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.peers.factors import write_factors
from tests.benchmarks.peers.memory_sampler import MARKER, MemorySampler
from tests.benchmarks.peers.rows import write_in_order, write_rows
from tests.benchmarks.peers.venv import PINNED, make_trl_venv

ROOT = Path(__file__).parents[3]
MODEL, ROWS = Path(".cache/models/smollm2-135m-instruct"), Path(".cache/data/chat.train.jsonl")
DTYPES = ("float32", "bfloat16")
STEPS, SEQUENCES, MAX_LENGTH, WORKERS = 28, 8, 128, 2
OPTIONS = {
    "steps": STEPS, "micro_batch_size": SEQUENCES // WORKERS, "max_length": MAX_LENGTH,
    "rank": 8, "alpha": 16, "learning_rate": 2e-4, "seed": 0,
}  # fmt: skip
TIMEOUT_S = 1800
MAX_TOTAL = 0.8
"""Most of TRL's seconds that the whole command may take."""
MAX_LOSS_ERROR = {"float32": 0.005, "bfloat16": 0.05}
"""Both start from the same factors and see the same rows."""


@dataclass(frozen=True)
class Training:
    """One run of one side."""

    total_s: float
    """From the command to its end."""
    adapter_s: float
    """From the command to the last file of the adapter: its weights, or ours to its manifest."""
    step_s: float
    """Median, without the first."""
    workers_bytes: int
    all_bytes: int
    losses: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of the median step."""
        return SEQUENCES * MAX_LENGTH / self.step_s


def main() -> int:
    """Exit code 1 where ours is not ahead in every column, or trains something else."""
    options = _make_parser().parse_args()
    python = make_trl_venv()
    runs: dict[str, dict[str, list[Training]]] = {
        dtype: {"TRL": [], "slora": []} for dtype in options.dtypes
    }
    with tempfile.TemporaryDirectory(prefix="slora-peers-") as scratch:
        folder = Path(scratch)
        _prepare_rows(folder)
        for number in range(options.runs):
            for dtype, sides in runs.items():
                # Each goes first in turn.
                for side in ("TRL", "slora") if number % 2 == 0 else ("slora", "TRL"):
                    print(f"run {number + 1} of {options.runs}: {side}, {dtype}", file=sys.stderr)
                    train = _train_trl if side == "TRL" else _train_slora
                    work = folder / f"{side}-{dtype}-{number}"
                    work.mkdir()
                    sides[side].append(train(work, dtype, python))
    medians = {
        dtype: {side: _take_medians(trainings) for side, trainings in sides.items()}
        for dtype, sides in runs.items()
    }
    misses = [line for dtype, sides in medians.items() for line in _find_misses(dtype, sides)]
    if options.json:
        print(json.dumps({"machine": describe_machine(), "misses": misses, "runs": {
            dtype: {side: [asdict(training) for training in trainings]
                    for side, trainings in sides.items()} for dtype, sides in runs.items()
        }}))  # fmt: skip
    else:
        _print_tables(medians)
    for line in misses:
        print(line, file=sys.stderr)
    return int(bool(misses))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    return parser


def _prepare_rows(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    count = STEPS * SEQUENCES
    write_rows(ROWS, folder / "rows.jsonl", tokenizer, count=count, tokens=MAX_LENGTH)
    write_in_order(folder / "rows.jsonl", folder / "ordered.jsonl", seed=OPTIONS["seed"])
    write_factors(MODEL, folder / "factors.safetensors", rank=OPTIONS["rank"], seed=OPTIONS["seed"])


def _train_trl(work: Path, dtype: str, python: Path) -> Training:
    output = work / "adapter"
    options = {**OPTIONS, "model": str(MODEL.absolute()), "dtype": dtype,
               "rows": str(work.parent / "ordered.jsonl"), "output": str(output),
               "factors": str(work.parent / "factors.safetensors")}  # fmt: skip
    (work / "options.json").write_text(json.dumps(options))
    script = Path(__file__).with_name("trl_job.py")
    launcher = [
        str(python),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(WORKERS),
    ]
    command = [*launcher, str(script), str(work / "options.json")]
    timing = _run_command(command, work, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    report = json.loads((output / "report.json").read_text())
    saved = output / "adapter_model.safetensors"
    return _make_training(timing, saved, report["seconds"], report["losses"])


def _train_slora(work: Path, dtype: str, _: Path) -> Training:
    spec = {
        "name": "peers",
        "model": {"path": str(MODEL.absolute()), "dtype": dtype},
        "data": {"train": str(work.parent / "rows.jsonl"), "format": "text",
                 "max_length": MAX_LENGTH, "packing": False},
        "method": {"kind": "lora", "rank": OPTIONS["rank"], "alpha": OPTIONS["alpha"]},
        "train": {"steps": STEPS, "batch_size": SEQUENCES, "schedule": "constant", "warmup": 0.0,
                  "micro_batch_size": OPTIONS["micro_batch_size"], "seed": OPTIONS["seed"],
                  "learning_rate": OPTIONS["learning_rate"], "checkpoint_every": None},
        "cluster": {"workers": WORKERS},
        "store": f"file://{work / 'store'}",
    }  # fmt: skip
    (work / "spec.yaml").write_text(yaml.safe_dump(spec))
    slora = str(Path(sys.executable).with_name("slora"))
    timing = _run_command([slora, "train", str(work / "spec.yaml")], work, {})
    (metrics,) = (work / "store").glob("runs/*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    (adapter,) = (work / "store").glob("adapters/peers/*/manifest.json")
    return _make_training(timing, adapter, _difference(steps), [line["loss"] for line in steps])


def _difference(steps: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the seconds of each step: the metrics count them from the start of the stage."""
    ends = [0.0, *(line["seconds"] for line in steps)]
    return [after - before for before, after in itertools.pairwise(ends)]


def _run_command(
    command: Sequence[str], work: Path, environment: Mapping[str, str]
) -> tuple[float, float, MemorySampler]:
    """Return when the command began (time.time), its seconds, and its memory."""
    mark = work.name
    log, began = work / "log.txt", time.time()
    variables = {**os.environ, **environment, MARKER: mark, "PYTHONPATH": str(ROOT)}
    with MemorySampler(mark) as memory, log.open("wb") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=output, stderr=output, timeout=TIMEOUT_S
        )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    return began, time.time() - began, memory


def _make_training(
    timing: tuple[float, float, MemorySampler],
    saved: Path,
    seconds: Sequence[float],
    losses: Sequence[float],
) -> Training:
    began, total_s, memory = timing
    if len(losses) != STEPS:
        # A worker that was lost, for want of memory for instance: the seconds are not of one run.
        raise SystemExit(f"{saved}: {len(losses)} steps were recorded, not {STEPS}")
    return Training(
        total_s=total_s,
        adapter_s=saved.stat().st_mtime - began,
        step_s=statistics.median(seconds[1:]),
        workers_bytes=memory.sum_largest(WORKERS),
        all_bytes=memory.total_bytes,
        losses=tuple(losses),
    )


def _take_medians(trainings: Sequence[Training]) -> Training:
    """Return the median of each figure; the losses are those of the first run."""
    names = ("total_s", "adapter_s", "step_s", "workers_bytes", "all_bytes")
    figures = {
        name: statistics.median(getattr(training, name) for training in trainings) for name in names
    }
    return Training(**figures, losses=trainings[0].losses)


def _find_misses(dtype: str, sides: Mapping[str, Training]) -> Iterator[str]:
    trl, ours = sides["TRL"], sides["slora"]
    for name in ("total_s", "adapter_s", "step_s", "workers_bytes", "all_bytes"):
        ratio = getattr(ours, name) / getattr(trl, name)
        limit = MAX_TOTAL if name == "total_s" else 1.0
        if ratio > limit:
            yield f"missed: {dtype} {name} is {ratio:.2f} x TRL's, wanted at most {limit}"
    errors = [abs(a - b) for a, b in zip(trl.losses, ours.losses, strict=True)]
    if max(errors) > MAX_LOSS_ERROR[dtype]:
        yield (
            f"missed: {dtype} losses differ by up to {max(errors):.4f}: the two do not train the "
            "same"
        )


def _print_tables(medians: Mapping[str, Mapping[str, Training]]) -> None:
    console = Console(width=100)
    table = Table(title=f"{', '.join(PINNED)}; {describe_machine()}")
    for column in ("", "s in all", "s to the adapter", "s a step", "tokens/s",
                   "GB of the workers", "GB of all"):  # fmt: skip
        table.add_column(column, justify="right" if column else "left")
    for dtype, sides in medians.items():
        for side, training in sides.items():
            figures = (
                f"{training.total_s:.1f}", f"{training.adapter_s:.1f}", f"{training.step_s:.2f}",
                f"{training.tokens_per_second:.0f}", f"{training.workers_bytes / 1e9:.2f}",
                f"{training.all_bytes / 1e9:.2f}",
            )  # fmt: skip
            table.add_row(f"{side}, {dtype}", *figures)
    console.print(table)
    losses = Table(title="loss of each step, first run")
    columns = [(side, dtype) for dtype, sides in medians.items() for side in sides]
    for name in ("step", *(f"{side}, {dtype}" for side, dtype in columns)):
        losses.add_column(name, justify="right")
    for step in range(STEPS):
        values = (f"{medians[dtype][side].losses[step]:.4f}" for side, dtype in columns)
        losses.add_row(str(step + 1), *values)
    console.print(losses)


if __name__ == "__main__":
    sys.exit(main())
