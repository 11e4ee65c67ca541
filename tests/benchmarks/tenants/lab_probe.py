"""Lab's requests during the load, in their own process: `... lab_probe ADDRESS SECONDS` on stdin.

It reads a JSON object with the token and the spec from its input, sends pages and submissions at a
constant rate, each measured from when it was due, and prints the durations as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from tests.benchmarks.service_load.client import LoadClient

TICK_S = 0.02
PAGES_PER_S, SUBMISSIONS_PER_S = 10.0, 4.0
PATHS = ("/v1/runs?limit=50", "/v1/schedules", "/v1/adapters", "/v1/runs?limit=50&status=planned")


async def probe(address: str, seconds: float, token: str, body: Any) -> dict[str, Any]:
    """Send both kinds of requests at once; return the durations in ms, and other statuses."""
    figures: dict[str, Any] = {
        "pages_ms": [],
        "submissions_ms": [],
        "machine_ms": [],
        "refused": [],
    }

    async def send_all(kind: str, rate: float, method: str) -> None:
        client, began = LoadClient(address, token), time.perf_counter()
        for number in range(int(seconds * rate)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            path = PATHS[number % len(PATHS)] if method == "GET" else "/v1/runs"
            try:
                status, _ = await client.request(method, path, body if method == "POST" else None)
            except (OSError, EOFError) as error:
                figures["refused"].append(type(error).__name__)
                client.close()
                client = LoadClient(address, token)
                continue
            figures[kind].append((time.perf_counter() - sent) * 1000)
            if status not in (200, 201):
                figures["refused"].append(status)
        client.close()

    async def measure_machine() -> None:
        """Measure how late this process wakes up, which no service can help."""
        until = time.perf_counter() + seconds
        while (slept := time.perf_counter()) < until:
            await asyncio.sleep(TICK_S)
            late = time.perf_counter() - slept - TICK_S
            figures["machine_ms"].append(max(0.0, late * 1000))

    await asyncio.gather(
        measure_machine(),
        send_all("pages_ms", PAGES_PER_S, "GET"),
        send_all("submissions_ms", SUBMISSIONS_PER_S, "POST"),
    )
    return figures


def main(address: str, seconds: str) -> int:
    """Print the figures."""
    request = json.load(sys.stdin)
    print(
        json.dumps(asyncio.run(probe(address, float(seconds), request["token"], request["body"])))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
