"""A service in its own process, without its API: `... service CONFIG`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path

from orchestrator.control.config import ServiceConfig, parse_config
from orchestrator.control.connect import connect_clusters
from orchestrator.control.follower import ClusterRules
from orchestrator.control.supervisor import Service
from orchestrator.registry.database import Database

JOB = "tests.benchmarks.service_kills.job"


def main(path: str) -> int:
    """Run the service; return 1 if one of its threads ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    config = parse_config(json.loads(Path(path).read_text()))
    service = Service(
        config,
        Database(config.database),
        connect_clusters(config),
        rules=lambda name: _make_rules(config),
    )
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    service.start()
    while service.is_alive and not over.wait(0.2):
        continue
    service.close()
    return 0 if service.failure is None else 1


def _make_rules(config: ServiceConfig) -> ClusterRules:
    """Make the configured rules, with the small job instead of the fine-tune."""
    (cluster,) = config.clusters.values()
    return ClusterRules(
        service=config.name,
        max_runs=cluster.max_runs,
        max_attempts=config.max_attempts,
        modules={"finetune": JOB},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
