"""`python -m tests.benchmarks.memory [--json] [--only PART ...] [--rounds N]`: memory, planned and
measured.

Each case is a short real training in fresh processes: a model, a number of ranks, a sharding. The
kernel's own high-water mark of each process is read in every phase and set beside the plan's; the
peaks may differ by 10 %, else the exit code is 1. A sharding that is not available is left out and
said. Measured on CPUs, a thread a rank. The case `under ray` is a whole `slora train` of the demo's
model on two workers, whose peaks are those of its ledger.

`--loss` measures what the loss in chunks saves, in two fresh processes: the peak above the frozen
model of a step of SmolLM2 with LoRA on 4 x 1024 tokens, all of them targets, with each loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.errors import InputError
from jobs.inspect.base_digest import BaseDigest
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from tests.ranks import run_ranks
from tests.tiny import chat_rows, merge_spec

ALLOWED = 0.10
STEPS = 6
WAYS = ((1, "replicate"), (2, "replicate"), (2, "node"), (2, "cluster"))
CACHE = Path(".cache")
LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
         "num_attention_heads": 12, "vocab_size": 8192, "max_position_embeddings": 512}  # fmt: skip
WIDE_VOCABULARY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "vocab_size": 131072}  # fmt: skip
AGAIN = "smollm2-135m of 1024 tokens, layers computed again"
LONG = ("wide vocabulary", "smollm2-135m of 1024 tokens", AGAIN)
"""Cases of one way only: they take long."""
RAY = "under ray"


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    spec: dict[str, Any]
    ranks: int
    sharding: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.ranks} x {self.sharding}"


@dataclass(frozen=True)
class Measured:
    """One case's outcome, in MB."""

    case: str
    planned: float
    found: float
    phases: dict[str, tuple[float, float]]
    """Planned and found."""

    @property
    def off(self) -> float:
        return self.planned / self.found - 1


def main() -> int:
    """Exit code 1 where a peak is further from its plan than allowed."""
    asked = _parser().parse_args()
    if asked.loss:
        return _compare_losses()
    # Not asked for, DeepSpeed says on the standard output of a rank which accelerator it chose.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            case
            for case in _cases(Path(folder), asked.only)
            if not asked.only or any(part in case.name for part in asked.only)
        ]
        found = [
            measured
            for number in range(asked.rounds)
            for case in cases
            if (measured := _measure(_give_own_store(case, number))) is not None
        ]
    if asked.json:
        print(json.dumps([asdict(one) | {"off": one.off} for one in found]))
    else:
        Console(width=80).print(_table(found))
    missed = [one for one in found if abs(one.off) > ALLOWED]
    for one in missed:
        print(f"missed: {one.case} is planned {one.off:+.1%} off", file=sys.stderr)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=1, help="times that each case is run")
    parser.add_argument("--loss", action="store_true", help="what the loss in chunks saves")
    parser.add_argument("--only", nargs="+", metavar="PART", help="cases with this in their name")
    return parser


def _cases(folder: Path, only: list[str] | None) -> Iterator[Case]:
    for model, spec in _specs(folder, only).items():
        for ranks, sharding in WAYS:
            store = f"file://{folder}/{model}-{ranks}-{sharding}"
            cluster = {"workers": ranks, "sharding": sharding}
            if model in LONG and (ranks, sharding) != WAYS[0]:
                continue
            yield Case(model, spec | {"cluster": cluster, "store": store}, ranks, sharding)
    ray = _specs(folder, [])["smollm2-135m"] | {"cluster": {"workers": 2, "sharding": "replicate"}}
    data = ray["data"] | {"eval": f"{CACHE}/data/chat.eval.jsonl"}
    yield Case("smollm2-135m", ray | {"data": data, "store": f"file://{folder}/ray"}, 2, RAY)


def _specs(folder: Path, only: list[str] | None) -> dict[str, dict[str, Any]]:
    train = {"steps": STEPS, "checkpoint_every": 3, "learning_rate": 1e-3}
    common = {"name": "memory", "method": {"kind": "slora"}}
    llama = common | {
        "model": {"path": str(folder / "llama"), "dtype": "float32"},
        "data": {"train": str(folder / "chat.jsonl"), "max_length": 256},
        "train": train | {"batch_size": 8, "micro_batch_size": 4},
    }
    found = {
        "llama-55m": llama,
        "llama-55m in bfloat16": merge_spec(llama, {"model": {"dtype": "bfloat16"}}),
        "minilm": common | {
            "model": {"path": f"{CACHE}/models/minilm", "task": "sequence-classification",
                      "dtype": "float32"},
            "data": {"train": f"{CACHE}/data/newsgroups.train.jsonl", "max_length": 96},
            "train": train | {"batch_size": 32, "micro_batch_size": 16},
        },
        "smollm2-135m": common | {
            "model": {"path": f"{CACHE}/models/smollm2-135m-instruct", "dtype": "float32"},
            "data": {"train": f"{CACHE}/data/chat.train.jsonl", "max_length": 128},
            "train": train | {"batch_size": 8, "micro_batch_size": 4},
        },
    }  # fmt: skip
    found["wide vocabulary"] = merge_spec(llama, {"model": {"path": str(folder / "wide")}})
    found["smollm2-135m of 1024 tokens"] = merge_spec(
        found["smollm2-135m"],
        {"data": {"max_length": 1024}, "train": {"batch_size": 2, "micro_batch_size": 2}},
    )
    found[AGAIN] = merge_spec(
        found["smollm2-135m of 1024 tokens"], {"train": {"activation_checkpointing": True}}
    )
    made = ("llama", "wide vocabulary")
    if only is None or any(part in name or name in part for part in only for name in made):
        _random_llama(folder / "llama", LLAMA)
        _random_llama(folder / "wide", LLAMA | WIDE_VOCABULARY)
        chat_rows(folder / "chat.jsonl", 400)
    return found


def _random_llama(folder: Path, sizes: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import CHATML, _byte_tokenizer, _saved

    tokenizer = _byte_tokenizer()
    tokenizer.chat_template, tokenizer.model_max_length = CHATML, 512
    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
               "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    _saved(LlamaForCausalLM(LlamaConfig(**sizes, **special)), tokenizer, folder)


def _give_own_store(case: Case, number: int) -> Case:
    """Return the case of one round: in a store of its own, or its run would be over already."""
    return replace(case, spec=case.spec | {"store": f"{case.spec['store']}-{number}"})


def _measure(case: Case) -> Measured | None:
    """None where the engine has not got it, or its model is not prepared."""
    try:
        prediction = validate_run(validate_spec(case.spec)).plan.estimate
    except InputError as refused:
        print(f"left out: {case.name}: {refused}", file=sys.stderr)
        return None
    assert prediction is not None
    by_rank = (
        _train_under_ray(case.spec)
        if case.sharding == RAY
        else run_ranks(_train, case.ranks, case.spec, case.ranks, spawned=True)
    )
    way = prediction.selected
    planned = {phase.name: phase.total / 1e6 for phase in way.memory.phases}
    found = {name: max(marks.get(name, 0.0) for marks in by_rank) / 1e6 for name in by_rank[0]}
    measured = Measured(
        case=case.name,
        planned=way.memory.peak / 1e6,
        found=max(found.values()),
        phases={name: (planned[name], found[name]) for name in planned if name in found},
    )
    print(f"{case.name}: {measured.off:+.1%}", file=sys.stderr)
    return measured


def _train_under_ray(spec: dict[str, Any]) -> list[dict[str, int]]:
    """Peak resident bytes of each worker of a whole run, from its ledger."""
    folder = Path(spec["store"].removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    known = set(folder.glob("runs/*/ledger.json"))
    command = [str(Path(sys.executable).with_name("slora")), "train", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (ledger,) = set(folder.glob("runs/*/ledger.json")) - known
    memory = json.loads(ledger.read_text("utf-8"))["memory"]
    return [{"peak of the run": peak["peak"]} for peak in memory.values()]


def _compare_losses() -> int:
    """Exit code 1 where the loss in chunks does not halve the peak above the frozen model, alone
    or with layers that are computed again.
    """
    ways = {"plain": (False, False), "chunks": (True, False), "chunks and again": (True, True)}
    steps = {name: run_ranks(_measure_step, 1, *way, spawned=True)[0] for name, way in ways.items()}
    ratios = {name: peak / steps["plain"][0] for name, (peak, _, _) in steps.items()}
    for name, (peak, kept, seconds) in steps.items():
        print(
            f"{name}: {peak / 1e6:,.0f} MB above the model ({ratios[name]:.2f} x), "
            f"{kept / 1e6:,.0f} MB of them saved; {seconds:.1f} s"
        )
    return int(max(ratios["chunks"], ratios["chunks and again"]) > 0.5)


def _measure_step(rank: int, is_chunked: bool, computes_again: bool) -> tuple[int, int, float]:
    """Peak bytes of a step above the frozen model, those of the tensors saved for backward, and
    the seconds.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.train.data.collate import Batch
    from jobs.train.engine.chunked_loss import PLAIN_LOSS
    from jobs.train.engine.loss import compute_loss
    from jobs.train.model.activation_checkpoints import checkpoint_activations
    from jobs.train.model.settle_loss import probe_loss
    from slora.layers.base_layers import get_features
    from slora.layers.install import freeze, install_lora
    from slora.layers.lora import init_factors
    from slora.layers.targets import find_targets

    cpu = torch.device("cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(f"{CACHE}/models/smollm2-135m-instruct")
    model.float().config.use_cache = False
    freeze(model)
    choice = probe_loss(model, cpu) if is_chunked else PLAIN_LOSS
    shapes = {name: get_features(layer) for name, layer in find_targets(
        model, "all-linear", head=[model.lm_head]).items()}  # fmt: skip
    factors = {n: init_factors(seed=0, name=n, shape=s, rank=8) for n, s in shapes.items()}
    install_lora(model, factors, scale=2.0)
    if computes_again:
        checkpoint_activations(model)
    ids = torch.randint(5, 40000, (4, 1024), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs=inputs, labels=ids, targets=ids.numel() - len(ids), tokens=ids.numel())
    saved: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    before, start = _read_status("VmRSS"), time.monotonic()
    Path("/proc/self/clear_refs").write_text("5")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = compute_loss(model, batch, choice, device=cpu)
    loss.backward()
    return _read_status("VmHWM") - before, sum(saved.values()), time.monotonic() - start


def _read_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _train(rank: int, spec: dict[str, Any], ranks: int) -> dict[str, int]:
    """Peak resident bytes of this rank in each phase, told by the run's own events."""
    # As a worker sets them, before the libraries below are imported.
    os.environ.update(DS_ACCELERATOR="cpu", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
    import torch

    # What a worker imports too: Ray is a part of every worker's memory.
    import jobs.train.cluster.ray_train  # noqa: F401
    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore
    from jobs.train.allocator import tune_allocator
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import FineTuner
    from jobs.train.hooks import RunHooks
    from jobs.train.loop import StageLoop

    checked = validate_run(validate_spec(spec))
    train = checked.spec.train
    tune_allocator(checked.spec.model.dtype, recomputes=train.activation_checkpointing)
    runs = RunStore(open_store(checked.spec.store), "run")
    request = checked.make_request("run", base=BaseDigest("0" * 64, ()))
    team = make_worker_context(rank, ranks, torch.device("cpu"), machine="here")
    hooks = RunHooks()
    # Answers to prompts are no part of the plan's peak, and take minutes here.
    hooks.generates_samples = False
    trainer = FineTuner(request, runs, team, hooks=hooks)
    marks = _Marks(trainer.recorder)
    StageLoop(trainer, hooks=hooks).run()
    return marks.ended()


class _Marks:
    """The high-water marks between a run's events."""

    def __init__(self, record: Any) -> None:
        self._peaks: dict[str, int] = {}
        self._phase, self._emit = "loading", record.emit_event
        record.emit_event = self._event

    def _event(self, kind: str, **told: Any) -> None:
        if kind in ("stage", "published"):
            self._note()
            self._phase = told.get("stage", "publishing")
        self._emit(kind, **told)

    def ended(self) -> dict[str, int]:
        self._note()
        return self._peaks

    def _note(self) -> None:
        peak = _read_status("VmHWM")
        self._peaks[self._phase] = max(peak, self._peaks.get(self._phase, 0))
        # From here on the kernel notes the peak anew.
        Path("/proc/self/clear_refs").write_text("5")


def _table(found: list[Measured]) -> Table:
    table = Table(title="peak memory of a worker, MB")
    for column in ("case", "phase", "planned", "measured", "off"):
        table.add_column(column, justify="left" if column in ("case", "phase") else "right")
    for one in found:
        table.add_row(one.case, "peak", *_cells(one.planned, one.found), style="bold")
        for phase, (planned, peak) in one.phases.items():
            table.add_row("", phase, *_cells(planned, peak))
    return table


def _cells(planned: float, found: float) -> tuple[str, ...]:
    return f"{planned:,.0f}", f"{found:,.0f}", f"{planned / found - 1:+.1%}"


if __name__ == "__main__":
    sys.exit(main())
