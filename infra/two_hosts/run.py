"""One spec, run on such hosts: what it sent in each stage, and what Ray sends by itself."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra.two_hosts.counting import Mark, StageTraffic, stages, watching
from infra.two_hosts.hosts import Cluster
from jobs.errors import Fault, InputError
from jobs.preflight import absolute
from jobs.spec import Spec
from jobs.spec_file import load_spec
from jobs.store.directory import DirectoryStore
from jobs.store.objects import open_store
from jobs.store.runs import RunStore, new_run_id

IDLE_S = 5.0


@dataclass(frozen=True)
class Found:
    """A run and its bytes. Those that are not of one stage are sums out of the busiest host."""

    run: str
    exit_code: int
    log: Path
    stages: tuple[StageTraffic, ...]
    before_steps: int
    """Start of the workers, loading, first evaluation."""
    between: int
    """Evaluations after that, hand-off, checkpoints, the end."""
    whole: int
    seconds: float
    runs: RunStore

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "run": self.run,
            "exit_code": self.exit_code,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "bytes": {"before_steps": self.before_steps, "between": self.between,
                      "whole": self.whole},
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A job that has ended, and what the hosts had sent at every line of its journals."""

    runs: RunStore
    exit_code: int
    log: Path
    marks: Sequence[Mark]


def idle_bytes_per_second(cluster: Cluster) -> float:
    """What Ray alone sends while nothing runs, out of the host that sends most."""
    began, before = time.monotonic(), cluster.sent()
    time.sleep(IDLE_S)
    took = time.monotonic() - began
    return max(now - then for then, now in zip(before, cluster.sent(), strict=True)) / took


def run_spec(cluster: Cluster, path: Path, changes: Sequence[str] = ()) -> Found:
    """`python -m jobs.finetune` on the head. Raises InputError where the spec itself is wrong."""
    spec = absolute(load_spec(path, changes))
    return _found(spec, run_job(cluster, path, spec, "jobs.finetune", changes))


def run_job(
    cluster: Cluster, path: Path, spec: Spec, module: str, changes: Sequence[str] = ()
) -> Watched:
    """A job of ours on the head, with its spec's file, watched. Raises InputError."""
    run = new_run_id(spec.name, datetime.datetime.now(datetime.UTC))
    runs, log = RunStore(open_store(spec.store), run), cluster.folder / f"{run}.log"
    if not isinstance(runs.store, DirectoryStore):
        problem = f"{spec.store}: the hosts see no network but their own"
        raise InputError([Fault("store", problem, "Use file:// and a folder.")])
    words = ["-m", module, "--spec", str(path.absolute()), "--run", run]
    words += [word for change in changes for word in ("--set", change)]
    with watching((runs.events, runs.metrics), cluster.sent) as marks:
        job = cluster.job(*words, log=log)
        code = job.wait()
    return Watched(runs, code, log, marks)


def _found(spec: Spec, watched: Watched) -> Found:
    runs, code, log, marks = watched.runs, watched.exit_code, watched.log, watched.marks
    traffic = tuple(stages(marks, every=spec.cluster.sync_every))
    first = next((mark for mark in marks if mark.line.get("event") == "stage"), marks[-1])
    of_steps = tuple(
        sum(gone(before, after)[host] for before, after in pairwise(marks) if after.step)
        for host in range(len(first.sent))
    )
    whole = gone(marks[0], marks[-1])
    busiest = max(range(len(whole)), key=whole.__getitem__)
    before = gone(marks[0], first)[busiest]
    return Found(
        run=runs.run_id,
        exit_code=code,
        log=log,
        stages=traffic,
        before_steps=before,
        between=whole[busiest] - before - of_steps[busiest],
        whole=whole[busiest],
        seconds=marks[-1].at - marks[0].at,
        runs=runs,
    )


def gone(before: Mark, after: Mark) -> tuple[int, ...]:
    """What each host has sent in between."""
    return tuple(now - then for then, now in zip(before.sent, after.sent, strict=True))
