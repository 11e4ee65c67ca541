"""The service under load: pages of 10,000 runs, submissions a second, 200 followers at once.

    python -m tests.benchmarks.service_load [--json]

The service is a process of its own on SQLite, with its threads at work on a stand-in for a cluster;
the clients are another process, which takes a core of two. Exit code 1 where a promise is broken.
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
from tests.benchmarks.service_load_parts.client import Client
from tests.benchmarks.service_load_parts.server import (
    PRINTING,
    config_of,
    fill,
    printed,
    running,
    spec,
)

LISTERS = 20
SUBMITTERS = 32
PAGE_MS = 50.0
A_SECOND = 200.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all three and prints them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--pages", type=int, default=4000)
    options.add_argument("--submissions", type=int, default=2000)
    options.add_argument("--followers", type=int, default=200)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="slora-load-") as folder:
        found = measured(Path(folder), asked)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:32} {value}")
    kept = found["page_p99_ms"] <= PAGE_MS and found["submissions_a_second"] >= A_SECOND
    whole = found["submissions_lost"] == 0 and found["followers_whole"] == asked.followers
    return 0 if kept and whole else 1


def measured(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of one service, started and ended here."""
    fill(folder, asked.runs)
    load = os.getloadavg()[0]
    with running(folder) as (address, words, process):
        before = cpu_s(process)
        pages = asyncio.run(listed(address, words, asked.pages))
        page = (cpu_s(process) - before) / asked.pages
        before = cpu_s(process)
        submitted = asyncio.run(submissions(address, words, spec(folder), asked.submissions))
        each = (cpu_s(process) - before) / asked.submissions
        lost = [run for run in submitted["ids"] if not there(folder, run)]
        lost += sorted(set(submitted["ids"]) - in_registry(folder))
        # What waits in the queue now is older than what is followed, which shall run at once.
        whole = asyncio.run(followed(address, words, spec(folder, PRINTING), asked.followers))
    return {
        "load_average_before": round(load, 1),
        "runs": asked.runs,
        "listers": LISTERS,
        **pages,
        "service_cpu_ms_a_page": round(page * 1000, 2),
        "submissions": asked.submissions,
        "submissions_a_second": submitted["rate"],
        "submission_p99_ms": submitted["p99"],
        "service_cpu_ms_a_submission": round(each * 1000, 2),
        "submissions_lost": len(lost),
        "followers": asked.followers,
        "followers_whole": whole,
    }


async def listed(address: str, words: str, count: int) -> dict[str, Any]:
    """Pages of 50, from anywhere in the list, by clients that ask again at once."""
    took: list[float] = []
    first = Client(address, words)
    cursors = [""]
    for _ in range(40):
        _, body = await first.ask("GET", "/v1/runs?limit=250" + cursors[-1])
        cursors.append(f"&cursor={json.loads(body)['next']}")
        if cursors[-1].endswith("None"):
            cursors.pop()
            break
    first.close()

    async def lister(seed: int) -> None:
        choose, client = random.Random(seed), Client(address, words)
        for _ in range(count // LISTERS):
            path = "/v1/runs?limit=50" + choose.choice(cursors)
            began = time.perf_counter()
            status, body = await client.ask("GET", path)
            took.append(time.perf_counter() - began)
            assert status == 200 and len(json.loads(body)["items"]) == 50
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(lister(seed) for seed in range(LISTERS)))
    rate = len(took) / (time.perf_counter() - began)
    return {
        "pages_a_second": round(rate, 1),
        "page_p50_ms": _percentile(took, 0.5),
        "page_p99_ms": _percentile(took, 0.99),
    }


async def submissions(address: str, words: str, asked: Any, count: int) -> dict[str, Any]:
    """Runs, each under a key of its own, by clients that submit again at once."""
    ids: list[str] = []
    took: list[float] = []
    left = iter(range(count))

    async def submitter() -> None:
        client = Client(address, words)
        for number in left:
            began = time.perf_counter()
            key = f"load-{number}"
            status, body = await client.ask(
                "POST", "/v1/runs", {"spec": asked}, Idempotency_Key=key
            )
            took.append(time.perf_counter() - began)
            assert status == 201, body
            ids.append(json.loads(body)["id"])
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(submitter() for _ in range(SUBMITTERS)))
    rate = count / (time.perf_counter() - began)
    return {"ids": ids, "rate": round(rate, 1), "p99": _percentile(took, 0.99)}


async def followed(address: str, words: str, asked: Any, followers: int) -> int:
    """How many of the followers of one run got every byte of its log, and its end."""
    client = Client(address, words)
    _, body = await client.ask("POST", "/v1/runs", {"spec": asked, "priority": 1000})
    run = json.loads(body)["id"]
    clients = [Client(address, words) for _ in range(followers)]
    streams = await asyncio.gather(*(one.stream(f"/v1/runs/{run}/log") for one in clients))
    for one in (client, *clients):
        one.close()
    expected = printed(f"{run}-a1").decode()
    return sum(_text(stream) == (expected, True) for stream in streams)


def there(folder: Path, run: str) -> bool:
    """Whether a run's request lies in the store."""
    return (folder / "store" / "runs" / run / "request.json").exists()


def in_registry(folder: Path) -> set[str]:
    """The runs that the registry knows."""
    database = Database(config_of(folder).database)
    with database.read() as session:
        found = set(session.scalars(text("SELECT id FROM runs")))
    database.close()
    return found


def cpu_s(process: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _text(stream: bytes) -> tuple[str, bool]:
    parts, ended = [], False
    for block in stream.decode().split("\n\n"):
        if block.startswith("event: log\n"):
            parts.append(json.loads(block.partition("\ndata: ")[2])["text"])
        ended = ended or block.startswith("event: end\n")
    return "".join(parts), ended


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1)


if __name__ == "__main__":
    sys.exit(main())
