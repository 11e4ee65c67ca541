"""`python -m tests.orchestrator.deployments.killed_driver STORE ENDPOINT AT`: follow the deployment
chat, and die by SIGKILL at the AT-th change. ENDPOINT is the JSON of an EndpointConfig.

The exit code is 0 where the rollout has fewer changes.
"""

from __future__ import annotations

import os
import signal
import sys

from jobs.store.open import open_store
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.open_target import open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.orchestrator.deployments.crash_fuse import Fuse

CHANGES = frozenset({"put", "load", "set_name", "unload", "ask"})


class KillingFuse(Fuse):
    """Kills its own process."""

    def blow(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    url, endpoint, at = sys.argv[1:]
    store = open_store(url)
    target = open_target("local", EndpointConfig.model_validate_json(endpoint))
    fuse = KillingFuse(int(at), is_after=False, watched=CHANGES)
    problem = RolloutDriver(fuse.wrap(store), fuse.wrap(target)).settle("chat")
    if problem is not None:
        print(problem, file=sys.stderr)
    return int(problem is not None)


if __name__ == "__main__":
    sys.exit(main())
