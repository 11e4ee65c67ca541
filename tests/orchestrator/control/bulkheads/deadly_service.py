"""A service in its own process, whose look at a run kills it or takes long: `URL STORE ID HOW`.

HOW is `kill` (the look ends the process, as a crash of C code does), `wait` (it waits until the
process is asked to end) or `look` (it ends at once).
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from sqlalchemy import text

from orchestrator.cluster.base import Capacity
from orchestrator.control.config import parse_config
from orchestrator.control.supervisor import Service
from orchestrator.registry.database import Database
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.control import RUNNING


class DeadlyCluster(FakeCluster):
    """A cluster whose capacity is read while a run is checked, which is when the process dies."""

    def __init__(self, database: Database, run: str, how: str) -> None:
        super().__init__("default", RUNNING)
        self._database, self._run, self._how = database, run, how
        self.over = threading.Event()

    def get_capacity(self) -> Capacity:
        with self._database.read() as session:
            items = session.scalars(text("SELECT item FROM looks WHERE kind = 'run'")).all()
        if self._run in items:
            print("looking", flush=True)
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "wait":
                self.over.wait(60)
        return super().get_capacity()


def main(url: str, store: str, run: str, how: str) -> int:
    """Run the service until SIGTERM; return 1 if one of its threads failed."""
    config = parse_config(
        {
            "database": url,
            "stores": [store],
            "clusters": {"default": {"address": "http://127.0.0.1:1"}},
            "poll_interval_s": 0.05,
            "lease_s": 1,
        }
    )
    database = Database(url)
    cluster = DeadlyCluster(database, run, how)
    service = Service(config, database, {"default": cluster})
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    service.start()
    while service.is_alive and not asked.wait(0.05):
        continue
    threading.Timer(0.5, cluster.over.set).start()
    service.close()
    return 0 if service.failure is None else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
