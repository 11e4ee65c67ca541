"""Lab's requests and its minutely schedule, with and without mallory's load beside them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.benchmarks.tenants.hostile_load import SOCKETS
from tests.benchmarks.tenants.tenant_world import PARKED, TenantWorld

MAX_P99_MS = 100.0
MAX_LATE_S = 2.0
MIN_FILES = 4 * SOCKETS
KINDS = ("pages_ms", "submissions_ms")
MACHINE = "machine_ms"
"""How late the process that measures wakes up: what the machine adds to every figure."""


@dataclass
class LoadFigures:
    """What lab had without mallory, with mallory, and after."""

    alone: dict[str, Any] = field(default_factory=dict)
    loaded: dict[str, Any] = field(default_factory=dict)
    late_alone_s: list[float] = field(default_factory=list)
    """Seconds from a due time of lab's schedule to its firing."""
    late_loaded_s: list[float] = field(default_factory=list)
    missed: int = 0
    """Minutes of the load without a firing."""
    thrown: dict[str, Any] = field(default_factory=dict)
    queued: dict[str, Any] = field(default_factory=dict)
    """What mallory had at the end."""
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Return whether lab's requests and its schedule were in time."""
        return not self.find_faults()

    def find_faults(self) -> list[str]:
        """Return what was late or refused."""
        faults = list(self.faults)
        for kind in KINDS:
            p99 = self.loaded[kind]["p99"]
            if p99 > MAX_P99_MS:
                faults.append(f"{kind}: p99 {p99} ms, more than {MAX_P99_MS:g}")
        if self.loaded["refused"]:
            faults.append(f"lab was refused: {self.loaded['refused']}")
        late = [round(seconds, 2) for seconds in self.late_loaded_s if seconds > MAX_LATE_S]
        if late:
            faults.append(f"lab's schedule was late: {late} s")
        if self.missed or not self.late_loaded_s:
            faults.append(f"{self.missed} minutes had no firing of {len(self.late_loaded_s)}")
        return faults

    def describe(self) -> dict[str, Any]:
        """Return all figures, with the ratio of the 99th percentiles."""
        ratio = {
            kind: round(self.loaded[kind]["p99"] / max(0.1, self.alone[kind]["p99"]), 2)
            for kind in (*KINDS, MACHINE)
        }
        return {**vars(self), "p99_ratio": ratio, "faults": self.find_faults()}


def measure_load(world: TenantWorld, *, alone_s: float, loaded_s: float) -> LoadFigures:
    """Measure lab for `alone_s`, and for `loaded_s` while mallory throws in all it has."""
    figures = LoadFigures()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < MIN_FILES:
        figures.faults.append(f"`ulimit -n` is below {MIN_FILES}: run `ulimit -n 8192` before")
    began = time.time()
    figures.alone = _summarise(_finish(_start_probe(world, alone_s)))
    loaded_at = time.time()
    spec = world.make_spec(world.mallory, "load")
    load = _start("hostile_load", world, loaded_s, {"token": world.mallory.secret, "spec": spec})
    figures.loaded = _summarise(_finish(_start_probe(world, loaded_s)))
    ended_at = time.time()
    figures.thrown = _finish(load)
    figures.queued = world.call("GET", "/v1/projects/mallory")["usage"]
    lateness = _read_lateness(world)
    figures.late_alone_s = [late for due, late in lateness if began <= due < loaded_at]
    figures.late_loaded_s = [late for due, late in lateness if loaded_at <= due < ended_at]
    due_minutes = int(ended_at // 60) - int(loaded_at // 60)
    figures.missed = due_minutes - len(figures.late_loaded_s)
    return figures


def _read_lateness(world: TenantWorld) -> list[tuple[float, float]]:
    """Return each due time of lab's schedule, and how late it fired; wait for the last minute."""
    until = time.monotonic() + 20
    while True:
        items = world.call("GET", "/v1/schedules/lab/minutely/firings?limit=200")["items"]
        newest = max((item["due_at"] for item in items), default=0.0)
        if newest >= time.time() // 60 * 60 or time.monotonic() > until:
            return [(item["due_at"], item["fired_at"] - item["due_at"]) for item in items]
        time.sleep(0.5)


def _start_probe(world: TenantWorld, seconds: float) -> subprocess.Popen[str]:
    spec = world.make_spec(world.lab, "probe")
    body = {"spec": spec, "cluster": PARKED}
    return _start("lab_probe", world, seconds, {"token": world.lab.secret, "body": body})


def _start(
    module: str, world: TenantWorld, seconds: float, request: dict[str, Any]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.benchmarks.tenants.{module}"]
    process = subprocess.Popen(
        [*command, world.address, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    return process


def _finish(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait()
    return json.loads(text)


def _summarise(figures: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"refused": sorted(map(str, figures["refused"]))[:20]}
    for kind in (*KINDS, MACHINE):
        ordered = sorted(figures[kind]) or [0.0]
        summary[kind] = {
            "count": len(ordered),
            "median": round(median(ordered), 1),
            "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
            "max": round(ordered[-1], 1),
        }
    return summary
