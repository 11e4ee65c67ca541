"""Searches as jobs of a running Ray, and what they left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import raw_search
from tests.ray_head import Head
from tests.tiny import write_spec

RATE = "train.learning_rate"


def start_search(
    head: Head, folder: Path, name: str, search: dict[str, Any], *words: str, **spec: Any
) -> subprocess.Popen[str]:
    # In the order of the space's keys, of which the last changes fastest in a grid.
    path = write_spec(folder / f"{name}.yaml", raw_search(folder, search, name=name, **spec))
    return head.run("jobs.search", "--spec", str(path), *(words or ("--run", name)))


def run_search(
    head: Head, folder: Path, name: str, search: dict[str, Any], **spec: Any
) -> tuple[int, str, list[TrialRecord]]:
    with start_search(head, folder, name, search, **spec) as driver:
        try:
            output, _ = driver.communicate(timeout=500)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise
    return driver.returncode, output, read_records(folder, name)


def read_records(folder: Path, name: str) -> list[TrialRecord]:
    return TrialLog(RunStore(DirectoryStore(folder / "store"), name)).records


def assert_nothing_remains(head: Head) -> None:
    """No trial, worker, or held part of the cluster some seconds after a search is over."""
    processes = [p for title in ("ray::TrialWorker", "ray::TrialActor", "Trainable") for p in
            head.family(title)]  # fmt: skip
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == []
    program = "import ray, json; ray.init(address='auto', logging_level='ERROR'); print(json.dumps("
    program += "[t['state'] for t in ray.util.placement_group_table().values()]))"
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {"REMOVED"}
