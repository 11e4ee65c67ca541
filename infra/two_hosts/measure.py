"""Measures the traffic of a run on several hosts by stage, and the traffic of Ray alone."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra.two_hosts.byte_counters import (
    StageTraffic,
    TrafficSample,
    measure_stages,
    record_traffic,
)
from infra.two_hosts.hosts import HostCluster
from jobs.errors import Fault, InputError
from jobs.spec.load import load_spec
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore, make_run_id

IDLE_S = 5.0


@dataclass(frozen=True)
class TrafficMeasurement:
    """Traffic of a run. Bytes outside of stages are sums of the busiest host."""

    run: str
    exit_code: int
    log: Path
    stages: tuple[StageTraffic, ...]
    before_steps: int
    """Bytes of starting the workers, loading, and the first evaluation."""
    between: int
    """Bytes of later evaluations, hand-off, checkpoints, and the end."""
    total: int
    seconds: float
    runs: RunStore

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return {
            "run": self.run,
            "exit_code": self.exit_code,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "bytes": {"before_steps": self.before_steps, "between": self.between,
                      "total": self.total},
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class WatchedJob:
    """A job that has ended, and a traffic sample for each line of its journals."""

    runs: RunStore
    exit_code: int
    log: Path
    samples: Sequence[TrafficSample]


def measure_idle_traffic(cluster: HostCluster) -> float:
    """Return the bytes per second of the busiest host while nothing runs."""
    started_at, before = time.monotonic(), cluster.read_sent_bytes()
    time.sleep(IDLE_S)
    elapsed_s = time.monotonic() - started_at
    return (
        max(now - then for then, now in zip(before, cluster.read_sent_bytes(), strict=True))
        / elapsed_s
    )


def run_spec(cluster: HostCluster, path: Path, changes: Sequence[str] = ()) -> TrafficMeasurement:
    """Run `jobs.finetune` on the head. Raise InputError if the spec is invalid."""
    spec = load_spec(path, changes)
    return _build_measurement(spec, run_job(cluster, path, spec, "jobs.finetune", changes))


def run_job(
    cluster: HostCluster, path: Path, spec: RunSpec, module: str, changes: Sequence[str] = ()
) -> WatchedJob:
    """Run one of our modules on the head, and sample its traffic. Raise InputError."""
    run = make_run_id(spec.name, datetime.datetime.now(datetime.UTC))
    runs, log = RunStore(open_store(spec.store), run), cluster.folder / f"{run}.log"
    if runs.store.local_path(runs.key(SPEC)) is None:
        problem = f"{spec.store}: the hosts have no network but their own"
        raise InputError([Fault("store", problem, "Use a folder, as in file:///data/store.")])
    arguments = ["-m", module, "--spec", str(path.absolute()), "--run", run]
    arguments += [argument for change in changes for argument in ("--set", change)]
    with record_traffic((runs.events, runs.metrics), cluster.read_sent_bytes) as samples:
        job = cluster.start_job(*arguments, log=log)
        code = job.wait()
    return WatchedJob(runs, code, log, samples)


def _build_measurement(spec: RunSpec, watched: WatchedJob) -> TrafficMeasurement:
    runs, code, log, samples = watched.runs, watched.exit_code, watched.log, watched.samples
    traffic = tuple(measure_stages(samples, every=spec.cluster.sync_every))
    first = next((sample for sample in samples if sample.line.get("event") == "stage"), samples[-1])
    step_bytes = tuple(
        sum(
            diff_samples(before, after)[host]
            for before, after in pairwise(samples)
            if after.is_step
        )
        for host in range(len(first.sent))
    )
    total_by_host = diff_samples(samples[0], samples[-1])
    busiest = max(range(len(total_by_host)), key=total_by_host.__getitem__)
    before = diff_samples(samples[0], first)[busiest]
    return TrafficMeasurement(
        run=runs.run_id,
        exit_code=code,
        log=log,
        stages=traffic,
        before_steps=before,
        between=total_by_host[busiest] - before - step_bytes[busiest],
        total=total_by_host[busiest],
        seconds=samples[-1].at - samples[0].at,
        runs=runs,
    )


def diff_samples(before: TrafficSample, after: TrafficSample) -> tuple[int, ...]:
    """Return the bytes that each host has sent in between."""
    return tuple(now - then for then, now in zip(before.sent, after.sent, strict=True))
