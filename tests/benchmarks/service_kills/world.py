"""The services below the control plane, which can be killed: Ray head, S3 server, database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import text

from orchestrator.registry.database import Database
from tests.benchmarks.service_kills.job import MARKS
from tests.ray_head import Head, free_ports, ray_head
from tests.storage.weed import BUCKET, Weed

LOCKED_S = 1.5
POLL_S, LEASE_S = 0.5, 3.0
SERVICES = 2
ROOT = Path(__file__).parents[3]


class World:
    """A Ray head and a bucket, which all services share."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        self.weed = Weed(folder / "weed")
        self.weed.start()
        stack.callback(self.weed.kill)
        stack.callback(_restore, dict(os.environ))
        os.environ.update(
            {
                **self.weed.environment,
                MARKS: str(self.marks),
                "SLORA_OUTBOX": str(folder / "outbox"),
                "PYTHONPATH": str(ROOT),
            }
        )
        (self._port,) = free_ports(1)
        self._head = self._start_ray()

    @property
    def url(self) -> str:
        return self._head.url

    @property
    def token(self) -> Path:
        return self.folder / "ray" / "token"

    def kill_ray(self) -> None:
        """Kill the head with all its jobs, and start another one at the same address."""
        self._head.kill()
        self._head = self._start_ray()

    def kill_s3(self, away_s: float) -> None:
        """Kill the S3 server, and restart it with its data."""
        self.weed.kill()
        time.sleep(away_s)
        self.weed.start()

    def _start_ray(self) -> Head:
        # The same folder with a new token at every start, which the service reads again.
        return self._stack.enter_context(ray_head(self.folder / "ray", dashboard=self._port))


class Services:
    """Two services on one database, each restarted after it was killed."""

    def __init__(self, world: World, url: str, name: str, stack: ExitStack) -> None:
        self.url, self.store = url, f"s3://{BUCKET}/{name}"
        self._file = world.folder / f"{name}.json"
        self._log = world.folder / f"{name}.log"
        self._file.write_text(json.dumps(self._make_config(world, name)))
        self._processes = [self._start() for _ in range(SERVICES)]
        stack.callback(self.end)

    def kill(self, number: int) -> None:
        """Kill one of them and start its successor."""
        self._processes[number].kill()
        self._processes[number].wait()
        self._processes[number] = self._start()

    def count_ended(self) -> int:
        """Count the services that ended by themselves; there should be none."""
        return sum(process.poll() is not None for process in self._processes)

    def cut_database(self) -> None:
        """End all connections of PostgreSQL, or lock the file of SQLite for a while."""
        database = Database(self.url)
        with database.write() as session:
            if self.url.startswith("sqlite"):
                # An open write transaction blocks every other writer.
                threading.Event().wait(LOCKED_S)
            else:
                session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
        database.close()

    def end(self) -> None:
        """Kill all services."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _make_config(self, world: World, name: str) -> dict[str, Any]:
        about = {"address": world.url, "token_file": str(world.token), "python": sys.executable}
        return {
            "name": name,
            "database": self.url,
            "stores": [self.store],
            "clusters": {"default": {**about, "max_runs": 4}},
            "max_attempts": 50,
            "poll_interval_s": POLL_S,
            "lease_s": LEASE_S,
        }

    def _start(self) -> subprocess.Popen[bytes]:
        module = "tests.benchmarks.service_kills.service"
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self._file)], stdout=log, stderr=log
            )


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
