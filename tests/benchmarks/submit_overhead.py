"""`python -m tests.benchmarks.submit_overhead [--json] [--rounds N]`: what the service costs a run.

The same job on the same Ray by `slora submit` and by a bare `ray job submit`, in turn: seconds from
the command's start until Ray has taken the job, until it loads, and to the first training step,
medians. What comes after Ray has taken it is the same work: on a busy machine its noise is larger
than what the service costs, which the first figure tells alone. Exit code 1 where the service's
median of the last figure is more than a second above the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore, list_runs
from tests.ray_head import Head, free_ports, ray_head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

ROOT = Path(__file__).parents[2]
SLORA = str(Path(sys.executable).with_name("slora"))
ROUNDS, LIMIT_S = 7, 1.0
DEADLINE_S = 180.0
LOOK_S = 0.1


def main() -> int:
    """Exit code 1 where a run through the service begins too late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slora-submit-") as made:
        found = _measured(Path(made), asked.rounds)
    medians = {
        name: statistics.median(one["total"] for one in runs) for name, runs in found.items()
    }
    overhead = medians["service"] - medians["bare"]
    if asked.json:
        print(json.dumps({"runs": found, "medians": medians, "overhead_s": overhead}))
    else:
        _show(found, overhead)
    return int(overhead > LIMIT_S)


def _measured(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    tiny_chat_model(folder / "model")
    chat_rows(folder / "train.jsonl", 60)
    spec = write_spec(folder / "spec.yaml", tiny_spec(folder, train={"steps": 2}))
    found: dict[str, list[dict[str, float]]] = {"bare": [], "service": []}
    # Jobs and bare submissions import the same packages: this checkout's.
    os.environ["PYTHONPATH"] = str(ROOT)
    with ray_head(folder / "ray") as head, open_service(folder, head) as environment:
        bare = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head.url]
        bare += ["--no-wait", "--", sys.executable, "-m", "jobs.finetune", "--spec", str(spec)]
        ways = {
            "bare": (bare, head.environment),
            "service": ([SLORA, "submit", str(spec)], environment),
        }
        # One of each before any counts: what is compiled and cached then is there for all.
        for number in range(rounds + 1):
            for name, (words, environment) in ways.items():
                taken = _taken(words, environment, folder, head)
                if number:
                    found[name].append(taken)
    return found


def _taken(
    words: list[str], environment: dict[str, str], folder: Path, head: Head
) -> dict[str, float]:
    """Seconds of the command, until Ray has the job, until it loads, trains; waits for its end."""
    store = DirectoryStore(folder / "store")
    known = set(list_runs(store))
    began = time.time()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout}{done.stderr}")
    said = time.time()
    at = _events(store, known, said + DEADLINE_S)
    return {
        "command": said - began,
        "taken": _ended(head, said + DEADLINE_S) - began,
        "loading": at["loading"] - began,
        "total": at["stage"] - began,
    }


def _events(store: DirectoryStore, known: set[str], until: float) -> dict[str, float]:
    """When each kind of event came first in the one new run, once that has published."""
    while time.time() < until:
        for run in set(list_runs(store)) - known:
            events, _ = RunStore(store, run).events.tail(0)
            at = {event["event"]: float(event["time"]) for event in reversed(events)}
            if "failed" in at:
                raise RuntimeError(f"run {run} failed: {events[-1]}")
            if "published" in at:
                return at
        time.sleep(LOOK_S)
    raise RuntimeError("the run did not end in time")


def _ended(head: Head, until: float) -> float:
    """When Ray took its newest job, once that is over: the next one has the machine to itself."""
    words = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    bearer = {"Authorization": f"Bearer {words}"}
    while time.time() < until:
        jobs = httpx.get(f"{head.url}/api/jobs/", headers=bearer, timeout=30).json()
        newest = max(
            (job for job in jobs if job["type"] == "SUBMISSION"), key=lambda job: job["start_time"]
        )
        if newest["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            return float(newest["start_time"]) / 1000
        time.sleep(LOOK_S)
    raise RuntimeError("the job did not end in time")


@contextmanager
def open_service(folder: Path, head: Head, *, warm_workers: int = 0) -> Iterator[dict[str, str]]:
    """A service on this Ray; the environment of who asks it."""
    [port] = free_ports(1)
    about = {
        "address": head.url,
        "token_file": head.environment["RAY_AUTH_TOKEN_PATH"],
        "python": sys.executable,
        "shared_filesystem": True,
        "warm_workers": warm_workers,
    }
    config: dict[str, Any] = {
        "database": f"sqlite:///{folder / 'registry.db'}",
        "stores": [f"file://{folder / 'store'}"],
        "clusters": {"default": about},
    }
    (folder / "service.yaml").write_text(yaml.safe_dump(config))
    words = [SLORA, "serve", "--config", str(folder / "service.yaml"), "--port", str(port)]
    log = (folder / "service.log").open("w+")
    serving = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        while "Serving at" not in (folder / "service.log").read_text():
            if serving.poll() is not None:
                raise RuntimeError((folder / "service.log").read_text())
            time.sleep(LOOK_S)
        yield {
            **os.environ,
            "SLORA_SERVICE": f"http://127.0.0.1:{port}",
            "SLORA_TOKEN_FILE": str(folder / "service-token"),
        }
    finally:
        serving.terminate()
        serving.wait(30)
        log.close()


def _show(found: dict[str, list[dict[str, float]]], overhead: float) -> None:
    heads = f"{'command':>10}{'taken':>10}{'loading':>10}{'first step':>12}"
    print(f"{'':10}{heads}   seconds, medians")
    for name, runs in found.items():
        parts = {part: [one[part] for one in runs] for part in ("command", "taken", "loading")}
        totals = [one["total"] for one in runs]
        told = "".join(f"{statistics.median(seconds):10.2f}" for seconds in parts.values())
        spread = max(totals) - min(totals)
        print(f"{name:10}{told}{statistics.median(totals):12.2f}   spread {spread:.2f}")
    print(f"the service costs {overhead:+.2f} s (limit {LIMIT_S:.1f} s)")


if __name__ == "__main__":
    sys.exit(main())
