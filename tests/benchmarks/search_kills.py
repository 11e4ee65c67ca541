"""`python -m tests.benchmarks.search_kills [--rounds N] [--json]`: searches killed, and what came.

Every round starts a search of 6 trials on a real Ray, kills its driver with SIGKILL at a random
moment, goes on with `--resume`, and compares the trials with those of a search that nobody killed:
the same trials, none twice, with the same metric to the bit; and no process left. Exit code 1 where
any round is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.ray_head import Head, ray_head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec

TRIALS = 6
SPACE = {
    "method.rank": {"choice": [2, 4]},
    "train.learning_rate": {"loguniform": [1e-3, 1e-2]},
}
PATIENCE_S = 300


@dataclass(frozen=True)
class Round:
    """One kill, and what came of the search."""

    after_s: float
    ended_before: int
    """Trials that had ended when it was killed."""
    same: bool
    twice: int
    left_behind: int

    @property
    def good(self) -> bool:
        """Whether nothing was lost, repeated or left."""
        return self.same and not self.twice and not self.left_behind


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when nothing was lost in any round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="slora-search-kills-") as made:
        folder = Path(made)
        _prepare(folder)
        with ray_head(folder / "ray") as head:
            whole, seconds = _whole(head, folder)
            found = []
            for number in range(asked.rounds):
                found.append(_round(head, folder, number, chance.uniform(0, seconds), whole))
                print(
                    f"{number + 1}/{asked.rounds} {_line(found[-1])}", file=sys.stderr, flush=True
                )
    if asked.json:
        print(json.dumps([{**asdict(one), "good": one.good} for one in found]))
    else:
        good = sum(one.good for one in found)
        print(
            f"{good} of {len(found)} killed searches came to the same {TRIALS} trials, none twice"
        )
    return 0 if all(one.good for one in found) else 1


def _prepare(folder: Path) -> None:
    tiny_chat_model(folder / "model")
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 6)
    spec: dict[str, Any] = tiny_spec(
        folder, data={"eval": str(folder / "eval.jsonl")}, train={"steps": 20, "eval_every": 5}
    )
    section = {"space": SPACE, "scheduler": "none", "samples": TRIALS, "max_concurrent": 2}
    (folder / "search.yaml").write_text(yaml.safe_dump({**spec, "search": section}))


def _whole(head: Head, folder: Path) -> tuple[list[TrialRecord], float]:
    began = time.monotonic()
    _run(head, folder, "--run", "whole")
    return _rows(folder, "whole"), time.monotonic() - began


def _run(head: Head, folder: Path, *words: str) -> None:
    driver = head.run("jobs.search", "--spec", str(folder / "search.yaml"), *words)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    if driver.returncode:
        raise RuntimeError(f"{words}: the search did not end well:\n{said}")


def _round(
    head: Head, folder: Path, number: int, after_s: float, whole: list[TrialRecord]
) -> Round:
    name = f"killed{number}"
    driver = head.run("jobs.search", "--spec", str(folder / "search.yaml"), "--run", name)
    try:
        driver.wait(after_s)
    except subprocess.TimeoutExpired:
        driver.kill()
    driver.communicate(timeout=60)
    before = [row for row in _rows(folder, name) if row.is_finished]
    there = (folder / "store" / "runs" / name / "search.yaml").exists()
    _run(head, folder, "--resume" if there else "--run", name)
    after = _rows(folder, name)
    twice = sum(_repeated(folder, row.run) for row in before)
    return Round(after_s, len(before), _facts(after) == _facts(whole), twice, _left(head))


def _facts(rows: Sequence[TrialRecord]) -> list[tuple[int, str, Any, float | None]]:
    return [(row.number, row.status, dict(row.config), row.metric) for row in rows]


def _repeated(folder: Path, run: str) -> bool:
    """Whether a trial took any step twice; to load it again for its commit is no such thing."""
    metrics, _ = RunStore(DirectoryStore(folder / "store"), run).metrics.tail(0)
    steps = [metric["step"] for metric in metrics if "evaluation" not in metric]
    return len(set(steps)) < len(steps)


def _rows(folder: Path, name: str) -> list[TrialRecord]:
    return TrialLog(RunStore(DirectoryStore(folder / "store"), name)).records


def _left(head: Head) -> int:
    left = [process for title in ("ray::Seat", "Trainable") for process in head.family(title)]
    _, alive = psutil.wait_procs(left, timeout=20)
    return len(alive)


def _line(one: Round) -> str:
    return (
        f"killed after {one.after_s:.1f} s, {one.ended_before} trials had ended: "
        f"{'the same trials' if one.same else 'OTHER TRIALS'}, {one.twice} twice, "
        f"{one.left_behind} processes left: {'good' if one.good else 'NOT GOOD'}"
    )


if __name__ == "__main__":
    sys.exit(main())
