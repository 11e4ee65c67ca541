"""Searches as jobs of a running Ray, and what they left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import raw_search
from tests.ray_head import Head

RATE = "train.learning_rate"


def started(
    head: Head, folder: Path, name: str, search: dict[str, Any], *words: str, **spec: Any
) -> subprocess.Popen[str]:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw_search(folder, search, name=name, **spec)))
    return head.run("jobs.search", "--spec", str(path), *(words or ("--run", name)))


def searched(
    head: Head, folder: Path, name: str, search: dict[str, Any], **spec: Any
) -> tuple[int, str, list[TrialRecord]]:
    driver = started(head, folder, name, search, **spec)
    said, _ = driver.communicate(timeout=500)
    return driver.returncode, said, rows_of(folder, name)


def rows_of(folder: Path, name: str) -> list[TrialRecord]:
    return TrialLog(RunStore(DirectoryStore(folder / "store"), name)).records


def nothing_left(head: Head) -> None:
    """No trial, worker, or held part of the cluster some seconds after a search is over."""
    left = [p for title in ("ray::Seat", "ray::TrialActor", "Trainable") for p in
            head.family(title)]  # fmt: skip
    _, alive = psutil.wait_procs(left, timeout=15)
    assert alive == []
    asked = "import ray, json; ray.init(address='auto', logging_level='ERROR'); print(json.dumps("
    asked += "[t['state'] for t in ray.util.placement_group_table().values()]))"
    there = {**head.environment, "RAY_ADDRESS": head.address}
    told = subprocess.run(
        [sys.executable, "-c", asked], env=there, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert set(json.loads(told.stdout.splitlines()[-1])) <= {"REMOVED"}
