"""Mallory's load, in its own process: `... hostile_load ADDRESS SECONDS`, its token on stdin.

Schedules and runs until the numbers are reached, large bodies without a pause, and sockets that
send a byte of a header each second. It prints what it sent and what was answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from tests.benchmarks.service_load.client import LoadClient

SCHEDULES, RUNS, BODIES, SOCKETS = 600, 1500, 16, 300
SUBMITTERS = 12
PAUSE_S = 0.2
NICENESS = 10
"""Mallory's machines are its own: their work should not take this one's processors."""


class HostileLoad:
    """All loads at once, until a time."""

    def __init__(self, address: str, seconds: float, request: dict[str, Any]) -> None:
        self._address, self._token, self._spec = address, request["token"], request["spec"]
        self._until = time.monotonic() + seconds
        self.counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("schedules", "runs", "bodies", "sockets")
        }

    async def run(self) -> None:
        """Load until the time is over."""
        schedules, runs = iter(range(SCHEDULES)), iter(range(RUNS))
        large = {"spec": {**self._spec, "name": "x" * ((1 << 20) - 2000)}}
        await asyncio.gather(
            *(self._submit(schedules, runs) for _ in range(SUBMITTERS)),
            *(self._send_bodies(large) for _ in range(BODIES)),
            *(self._hold_socket(number) for number in range(SOCKETS)),
        )

    async def _submit(self, schedules: Any, runs: Any) -> None:
        client = LoadClient(self._address, self._token)
        for number in schedules:
            body = {"name": f"load-{number}", "cron": "* * * * *", "kind": "finetune"}
            spec = {**self._spec, "name": f"load-s{number % 50}"}
            body |= {"spec": spec, "concurrency": "queue"}
            if not await self._insist(client, "schedules", "/v1/schedules", body):
                return
        for number in runs:
            body = {"spec": {**self._spec, "name": f"load-r{number % 50}"}, "priority": 1000}
            if not await self._insist(client, "runs", "/v1/runs", body):
                return
        client.close()

    async def _insist(self, client: LoadClient, kind: str, path: str, body: Any) -> bool:
        """Repeat a request until it is accepted; return whether there is time left."""
        while time.monotonic() < self._until:
            status = await self._request(client, kind, "POST", path, body)
            if status == 201:
                return True
            await asyncio.sleep(PAUSE_S)
        return False

    async def _send_bodies(self, body: Any) -> None:
        client = LoadClient(self._address, self._token)
        while time.monotonic() < self._until:
            await self._request(client, "bodies", "POST", "/v1/runs", body)
            await asyncio.sleep(0)
        client.close()

    async def _request(
        self, client: LoadClient, kind: str, method: str, path: str, body: Any
    ) -> int:
        try:
            status, _ = await client.request(method, path, body)
        except (OSError, EOFError, ValueError) as error:
            self.counts[kind][type(error).__name__] += 1
            client.reset()
            await asyncio.sleep(PAUSE_S)
            return 0
        self.counts[kind][str(status)] += 1
        if status in (413, 429):
            client.reset()
            await asyncio.sleep(PAUSE_S)
        return status

    async def _hold_socket(self, number: int) -> None:
        """Hold a connection with half a header, or half a body, and open another when it ends."""
        host, _, port = self._address.removeprefix("http://").partition(":")
        head = "POST /v1/runs HTTP/1.1\r\nHost: x\r\n"
        if number % 2:
            head += f"Authorization: Bearer {self._token}\r\nContent-Length: 900000\r\n\r\n"
        while time.monotonic() < self._until:
            writer = None
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                self.counts["sockets"]["opened"] += 1
                writer.write(head.encode())
                while time.monotonic() < self._until:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(1)
            if writer is not None:
                writer.close()
            self.counts["sockets"]["ended"] += 1
            await asyncio.sleep(PAUSE_S)


def main(address: str, seconds: str) -> int:
    """Print the counts."""
    os.nice(NICENESS)
    load = HostileLoad(address, float(seconds), json.load(sys.stdin))
    asyncio.run(load.run())
    print(json.dumps(load.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
