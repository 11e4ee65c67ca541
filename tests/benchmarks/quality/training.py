"""One setting trained on the product's own loop, or by PEFT's code, and measured on the test rows.

A process trains many settings, one after the other: it loads each base and evaluates it untrained
only once.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.quality.corpora import name_splits
from tests.benchmarks.quality.setting import Setting

if TYPE_CHECKING:
    from tests.benchmarks.quality.trainers import Bench

BYTES_A_NUMBER = 4
"""Gradients are exchanged in float32."""
LIBRARIES = ("torch", "transformers", "peft", "deepspeed")
SOURCES = ("slora", "jobs", "tests/benchmarks/quality")
_bench: Bench | None = None


def start_process(threads: int, device: str) -> None:
    """Start a process group of one, as the loop expects it."""
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error",
    )  # fmt: skip
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    store = torch.distributed.HashStore()
    backend = "gloo" if device == "cpu" else "nccl"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def train_setting(setting: Setting, splits: Mapping[str, str], device: str) -> dict[str, Any]:
    """Return the line of one training. Of one that diverged, it says so in `unavailable`.

    Raise InputError if the product refuses the setting.
    """
    import torch

    from jobs.errors import TrainingFailed
    from tests.benchmarks.machine import describe_machine
    from tests.benchmarks.quality.trainers import Bench

    global _bench
    if _bench is None:
        _bench = Bench(torch.device(device))
    folder = Path(tempfile.mkdtemp(prefix="slora-quality-"))
    start_time, start_cpu = time.monotonic(), time.process_time()
    try:
        figures = _bench.train(setting, splits, f"file://{folder}")
    except TrainingFailed as error:
        figures = {"unavailable": f"diverged: {error}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Models and engines refer to themselves; two of them do not fit beside others' work.
        gc.collect()
    return {
        **describe_setting(setting, splits),
        **figures,
        "wall_seconds": round(time.monotonic() - start_time, 1),
        "cpu_seconds": round(time.process_time() - start_cpu, 1),
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }


def describe_setting(setting: Setting, splits: Mapping[str, str]) -> dict[str, Any]:
    """Return what was trained, and with which code, for people and for reports."""
    return {
        "key": setting.key,
        "data": setting.corpus.name,
        "method": setting.variant.name,
        "rates": dict(setting.point),
        "seed": setting.seed,
        "dtype": setting.dtype,
        "steps": setting.corpus.steps,
        "files": name_splits(splits),
        "code": read_code_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def read_code_version() -> str:
    """Return the commit, with `-changed` if the code that trains differs from it."""
    commit = _run_git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-changed" if _run_git("status", "--porcelain", "--", *SOURCES) else commit


def _run_git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def summarize_stages(
    metrics: Sequence[Mapping[str, Any]], trained: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return each stage's steps, trained numbers, and bytes that a worker exchanges at a step.

    `metrics` are the lines of the run's metrics; `trained` numbers by stage, head included. The
    bytes are those of the gradients, before a collective multiplies them by `2 (W - 1) / W`.
    """
    steps = (line for line in metrics if "evaluation" not in line)
    return [
        {
            "stage": stage,
            "steps": len(list(lines)),
            "trained": trained[stage],
            "bytes_a_step": BYTES_A_NUMBER * trained[stage],
        }
        for stage, lines in groupby(steps, key=lambda line: str(line["stage"]))
    ]


def extract_curve(metrics: Sequence[Mapping[str, Any]], metric: str) -> list[list[Any]]:
    """Return [step, tokens, figure] of each evaluation on the validation rows, in order."""
    curve, step, tokens = list[list[Any]](), 0, 0
    for line in metrics:
        if "evaluation" in line:
            at = 0 if line["evaluation"] == "before" else step
            curve.append([at, tokens if at else 0, round(line[metric], 5)])
        else:
            step, tokens = line["step"], int(line["tokens"])
    return sorted(curve, key=lambda point: point[0])
