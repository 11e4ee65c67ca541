"""Measure the service under load: pages of 10,000 runs, submissions, 200 followers at once.

    python -m tests.benchmarks.service_load [--json]

The service is a process on SQLite, with its threads running on a fake cluster. The clients are
another process, which takes one of two cores. The exit code is 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from orchestrator.registry.database import Database
from tests.benchmarks.service_load.client import LoadClient
from tests.benchmarks.service_load.server import (
    PRINTING,
    fill,
    make_config,
    make_run_spec,
    print_lines,
    run_service,
)

LISTERS = 20
SUBMITTERS = 32
MAX_PAGE_MS = 50.0
MIN_SUBMISSION_RATE = 200.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all three and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=4000)
    parser.add_argument("--submissions", type=int, default=2000)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="slora-load-") as folder:
        figures = measure_service(Path(folder), options)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value}")
    rate = figures["submissions_per_second"]
    is_fast = figures["page_p99_ms"] <= MAX_PAGE_MS and rate >= MIN_SUBMISSION_RATE
    is_complete = (
        figures["submissions_lost"] == 0 and figures["followers_complete"] == options.followers
    )
    return 0 if is_fast and is_complete else 1


def measure_service(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start a service, measure it and stop it."""
    fill(folder, options.runs)
    load = os.getloadavg()[0]
    with run_service(folder) as (address, token, process):
        before = read_cpu_s(process)
        pages = asyncio.run(measure_pages(address, token, options.pages))
        page = (read_cpu_s(process) - before) / options.pages
        before = read_cpu_s(process)
        submitted = asyncio.run(
            measure_submissions(address, token, make_run_spec(folder), options.submissions)
        )
        each = (read_cpu_s(process) - before) / options.submissions
        lost = [run for run in submitted["ids"] if not has_request(folder, run)]
        lost += sorted(set(submitted["ids"]) - read_run_ids(folder))
        # The followed run has the highest priority, because the queue is full of older runs.
        complete = asyncio.run(
            count_complete_followers(
                address, token, make_run_spec(folder, PRINTING), options.followers
            )
        )
    return {
        "load_average_before": round(load, 1),
        "runs": options.runs,
        "listers": LISTERS,
        **pages,
        "service_cpu_ms_per_page": round(page * 1000, 2),
        "submissions": options.submissions,
        "submissions_per_second": submitted["rate"],
        "submission_p99_ms": submitted["p99"],
        "service_cpu_ms_per_submission": round(each * 1000, 2),
        "submissions_lost": len(lost),
        "followers": options.followers,
        "followers_complete": complete,
    }


async def measure_pages(address: str, token: str, count: int) -> dict[str, Any]:
    """Measure pages of 50 from random positions, read by clients without a pause."""
    durations: list[float] = []
    first = LoadClient(address, token)
    cursors = [""]
    for _ in range(40):
        _, body = await first.request("GET", "/v1/runs?limit=250" + cursors[-1])
        cursors.append(f"&cursor={json.loads(body)['next']}")
        if cursors[-1].endswith("None"):
            cursors.pop()
            break
    first.close()

    async def lister(seed: int) -> None:
        choose, client = random.Random(seed), LoadClient(address, token)
        for _ in range(count // LISTERS):
            path = "/v1/runs?limit=50" + choose.choice(cursors)
            began = time.perf_counter()
            status, body = await client.request("GET", path)
            durations.append(time.perf_counter() - began)
            assert status == 200 and len(json.loads(body)["items"]) == 50
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(lister(seed) for seed in range(LISTERS)))
    rate = len(durations) / (time.perf_counter() - began)
    return {
        "pages_per_second": round(rate, 1),
        "page_p50_ms": _compute_percentile(durations, 0.5),
        "page_p99_ms": _compute_percentile(durations, 0.99),
    }


async def measure_submissions(address: str, token: str, spec: Any, count: int) -> dict[str, Any]:
    """Measure submissions, each with its own key, sent by clients without a pause."""
    ids: list[str] = []
    durations: list[float] = []
    numbers = iter(range(count))

    async def submitter() -> None:
        client = LoadClient(address, token)
        for number in numbers:
            began = time.perf_counter()
            key = f"load-{number}"
            status, body = await client.request(
                "POST", "/v1/runs", {"spec": spec}, Idempotency_Key=key
            )
            durations.append(time.perf_counter() - began)
            assert status == 201, body
            ids.append(json.loads(body)["id"])
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(submitter() for _ in range(SUBMITTERS)))
    rate = count / (time.perf_counter() - began)
    return {"ids": ids, "rate": round(rate, 1), "p99": _compute_percentile(durations, 0.99)}


async def count_complete_followers(address: str, token: str, spec: Any, followers: int) -> int:
    """Count the followers of one run that received every byte of its log, and its end."""
    client = LoadClient(address, token)
    _, body = await client.request("POST", "/v1/runs", {"spec": spec, "priority": 1000})
    run = json.loads(body)["id"]
    clients = [LoadClient(address, token) for _ in range(followers)]
    streams = await asyncio.gather(
        *(follower.stream(f"/v1/runs/{run}/log") for follower in clients)
    )
    for follower in (client, *clients):
        follower.close()
    expected = print_lines(f"{run}-a1").decode()
    return sum(_read_text(stream) == (expected, True) for stream in streams)


def has_request(folder: Path, run: str) -> bool:
    """Return whether the store has the request of a run."""
    return (folder / "store" / "runs" / run / "request.json").exists()


def read_run_ids(folder: Path) -> set[str]:
    """Read the ids of all runs in the registry."""
    database = Database(make_config(folder).database)
    with database.read() as session:
        ids = set(session.scalars(text("SELECT id FROM runs")))
    database.close()
    return ids


def read_cpu_s(process: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read_text(stream: bytes) -> tuple[str, bool]:
    parts, ended = [], False
    for block in stream.decode().split("\n\n"):
        if block.startswith("event: log\n"):
            parts.append(json.loads(block.partition("\ndata: ")[2])["text"])
        ended = ended or block.startswith("event: end\n")
    return "".join(parts), ended


def _compute_percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1)


if __name__ == "__main__":
    sys.exit(main())
