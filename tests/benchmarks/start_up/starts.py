"""Starts and ends of runs of the demo's spec: by `slora train`, and through a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore, list_runs
from jobs.train.monitor.phases import collect_starts
from tests.benchmarks.submit_overhead import open_service
from tests.ray.pool_probe import Probe
from tests.ray_head import Head, ray_head

ROOT = Path(__file__).parents[3]
SLORA = str(Path(sys.executable).with_name("slora"))
SPEC = ROOT / "jobs/examples/chat.yaml"
STEPS, WORKERS = 4, 2
DEADLINE_S = 900.0
LOOK_S = 0.05
END_EVENTS = ("published", "failed")


@dataclass(frozen=True)
class MeasuredStart:
    """One run, in seconds."""

    phases: Mapping[str, float]
    wait_s: float
    """From outside, of this process's clock: from the submission to the end of the first step."""
    end_s: float | None = None
    """From the published adapter until the command returned; None through a service."""

    @property
    def first_step_s(self) -> float:
        """Return the seconds from the submission until the first step began."""
        return self.wait_s - self.phases["first_step"]

    @property
    def deviation(self) -> float:
        """Return by how much the sum of the phases differs from the wait, as a share of it."""
        return abs(sum(self.phases.values()) - self.wait_s) / self.wait_s


def measure_cold() -> MeasuredStart:
    """Run `slora train` where no Ray runs."""
    with make_folder() as folder:
        environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
        began = time.time()
        run_slora(["train", str(write_spec(folder))], {**environment, "RAY_ADDRESS": "local"})
        ended = time.time()
        events = find_events(folder, set())
    return make_start(events, began, ended)


def measure_service(count: int) -> list[MeasuredStart]:
    """Submit `count` runs one after the other to a service whose Ray has run none before.

    Each run but the first borrows the warm workers that the one before has left.
    """
    # Jobs import the packages of this checkout.
    os.environ["PYTHONPATH"] = str(ROOT)
    starts = []
    with (
        make_folder() as folder,
        ray_head(folder / "ray") as head,
        open_service(folder, head, warm_workers=WORKERS if count > 1 else 0) as environment,
    ):
        head.wait_for_agent()
        for number in range(count):
            if number:
                wait_for_warm_workers(head)
            known = set(list_runs(DirectoryStore(folder / "store")))
            began = time.time()
            run_slora(["submit", str(write_spec(folder))], environment)
            starts.append(make_start(find_events(folder, known), began))
    return starts


def wait_for_warm_workers(head: Head) -> None:
    """Wait until the workers of the next run have imported everything."""
    probe = Probe(head)
    try:
        probe.ask("wait_for_idle", WORKERS)
    finally:
        probe.leave()


def run_slora(words: list[str], environment: Mapping[str, str]) -> None:
    """Run a command. Raise RuntimeError with what it wrote if it fails."""
    done = subprocess.run(
        [SLORA, *words], cwd=ROOT, check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"slora {words[0]} failed:\n{done.stdout}{done.stderr}")


def make_start(
    events: list[dict[str, Any]], began: float, ended: float | None = None
) -> MeasuredStart:
    """Return the figures of a run by its events and the times of the command."""
    start = collect_starts(events)[-1]
    first_step = next(event["time"] for event in events if event.get("phase") == "first_step")
    if ended is None:
        # The command that submits it and the service's check come before a run exists.
        return MeasuredStart(start.phases, first_step - start.since)
    published = next(event["time"] for event in events if event["event"] == "published")
    return MeasuredStart(start.phases, first_step - began, ended - published)


def find_events(folder: Path, known: set[str]) -> list[dict[str, Any]]:
    """Return the events of the one new run once it has ended."""
    store, deadline = DirectoryStore(folder / "store"), time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for run in set(list_runs(store)) - known:
            events, _ = RunStore(store, run).events.tail(0)
            ends = [event for event in events if event["event"] in END_EVENTS]
            if ends and ends[-1]["event"] == "failed":
                raise RuntimeError(f"run {run} failed: {json.dumps(ends[-1])}")
            if ends:
                return events
        time.sleep(LOOK_S)
    raise RuntimeError(f"no run ended within {DEADLINE_S:.0f} s")


def write_spec(folder: Path) -> Path:
    """Write the demo's spec with a few steps and a store of its own."""
    spec = yaml.safe_load(SPEC.read_text())
    spec["train"] |= {"steps": STEPS, "checkpoint_every": None}
    spec["store"] = f"file://{folder / 'store'}"
    spec["model"]["path"] = str(ROOT / spec["model"]["path"])
    spec["data"] |= {key: str(ROOT / spec["data"][key]) for key in ("train", "eval")}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@contextmanager
def make_folder() -> Iterator[Path]:
    """Make a folder with a short path, for Ray's sockets; remove it on exit."""
    with tempfile.TemporaryDirectory(prefix="slora-start-") as folder:
        yield Path(folder)
