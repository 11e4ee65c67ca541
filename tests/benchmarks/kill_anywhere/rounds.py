"""One round: a run is killed at a random moment, goes on, and is compared with one that was not."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from jobs.store.adapters.operations import resolve_adapter, verify_adapter
from jobs.store.adapters.versions import list_versions
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec
from tests.training_runs import TrainingCase, train_all

STEPS, EVERY = 40, 5
VICTIMS = ("worker", "controller", "driver", "host")
TITLES = {"worker": "ray::RayTrainWorker", "controller": "ray::TrainController"}
PATIENCE_S = 600.0
CLOSE = 1e-4
"""Relative, of the final loss at another number of workers."""


@dataclass(frozen=True)
class Ending:
    """What a run came to."""

    loss: float
    digests: tuple[str, ...]
    repeated: int
    """Steps taken more than once."""
    whole: bool
    """Every step was taken, and one version committed that verifies."""


@dataclass(frozen=True)
class Round:
    """One kill and what came after it."""

    victim: str
    at_step: int
    workers: tuple[int, int]
    """Before and after."""
    bit_equal: bool
    difference: float
    repeated: int
    left_behind: int
    good: bool

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def prepare(folder: Path) -> Path:
    """A tiny model, its data and the spec that every round runs."""
    tiny_chat_model(folder / "model")
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 6)
    spec = tiny_spec(
        folder,
        data={"eval": str(folder / "eval.jsonl")},
        train={"steps": STEPS, "checkpoint_every": EVERY, "batch_size": 4},
        cluster={"workers": 2, "max_failures": 4},
    )
    return write_spec(folder / "spec.yaml", spec)


def uninterrupted(spec: Path, folder: Path, workers: int) -> Ending:
    """The run that nobody kills, on ranks of this machine: Ray must not change a bit of it."""
    name = f"whole{workers}"
    train_all([TrainingCase(name, {**yaml.safe_load(spec.read_text()), "name": name})], workers)
    return ending(folder, name)


def killed(
    head: Callable[[], Head],
    spec: Path,
    folder: Path,
    *,
    name: str,
    victim: str,
    whole: Callable[[int], Ending],
    chance: random.Random,
) -> Round:
    """Runs, kills, goes on. `head` gives a Ray that is up, a new one where the last was killed;
    `whole` what a run of so many workers comes to that nobody kills.
    """
    first, then = 2, 2
    driver = _driven(head(), spec, name, first)
    moment = chance.randint(0, STEPS)
    _wait_for(RunStore(DirectoryStore(folder / "store"), name), moment, driver)
    time.sleep(chance.uniform(0.0, 0.3))  # a moment inside a step, a hand-off or a checkpoint
    _kill(head(), driver, victim)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    if driver.returncode and victim in ("driver", "host"):
        then = chance.choice((1, 2))
        driver = _driven(head(), spec, name, then)
        said, _ = driver.communicate(timeout=PATIENCE_S)
    if driver.returncode:
        raise RuntimeError(f"{name}, {victim} at step {moment}: the run did not go on:\n{said}")
    found, left = ending(folder, name), _left_behind(head())
    same = whole(then)
    difference = abs(found.loss - same.loss) / same.loss
    equal = first == then and found.loss == same.loss and found.digests == same.digests
    right = equal if first == then else difference <= CLOSE
    good = right and found.whole and found.repeated <= EVERY and not left
    return Round(victim, moment, (first, then), equal, difference, found.repeated, left, good)


def ending(folder: Path, name: str) -> Ending:
    """What the store says that a run came to."""
    store = DirectoryStore(folder / "store")
    runs = RunStore(store, name)
    steps = Counter(m["step"] for m in runs.metrics.tail(0)[0] if "evaluation" not in m)
    manifest = resolve_adapter(store, name)
    # A commit that was killed inside leaves a number without a manifest, which counts as none.
    committed = list_versions(store, name)
    whole = set(steps) == set(range(1, STEPS + 1)) and not verify_adapter(store, manifest)
    return Ending(
        loss=manifest.evaluation["end"]["loss"],
        digests=tuple(file.sha256 for file in manifest.files if "safetensors" in file.name),
        repeated=sum(count - 1 for count in steps.values()),
        whole=whole and committed == [manifest.version],
    )


def _driven(head: Head, spec: Path, name: str, workers: int) -> subprocess.Popen[str]:
    changes = ["--set", f"name={name}", "--set", f"cluster.workers={workers}"]
    return head.run("jobs.finetune", "--spec", str(spec), "--run", name, *changes)


def _wait_for(runs: RunStore, moment: int, driver: subprocess.Popen[str]) -> None:
    """Until the run has taken so many steps; 0: until its workers load the model."""
    until = time.monotonic() + PATIENCE_S
    while driver.poll() is None and time.monotonic() < until:
        events, _ = runs.events.tail(0)
        metrics, _ = runs.metrics.tail(0)
        loading = any(event["event"] == "loading" for event in events)
        taken = max((m["step"] for m in metrics), default=0)
        if loading and taken >= moment:
            return
        time.sleep(0.02)


def _kill(head: Head, driver: subprocess.Popen[str], victim: str) -> None:
    if victim == "driver":
        driver.kill()
    elif victim == "host":
        head.kill()
        driver.kill()
    else:
        found = head.family(TITLES[victim])
        for process in found[:1]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                return  # it was over before the kill came: as good a moment as any


def _left_behind(head: Head) -> int:
    """Workers and controllers that still run after their run is over, some seconds later."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        left = [p for title in TITLES.values() for p in head.family(title)]
        if not left:
            return 0
        psutil.wait_procs(left, timeout=1)
    return len(left)
