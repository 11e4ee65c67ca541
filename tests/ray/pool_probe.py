"""`python -m tests.ray.pool_probe`: a driver that looks at pools and acts on them for a test.

It reads one JSON list from each line, the name of a command and its arguments, and answers with a
line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.spec.sections.cluster import ClusterSection
from jobs.train.pool.borrow import PoolClient, borrow_workers
from jobs.train.pool.pool_actor import PoolPolicy
from jobs.train.pool.pool_identity import NAMESPACE, PoolIdentity
from tests.ray_head import Head
from tests.waiting import wait_for

CLUSTER = ClusterSection(workers=2)
TIMEOUT_S = 400


class Probe:
    """A test's side of the probe."""

    def __init__(self, head: Head) -> None:
        environment = {**head.environment, "RAY_ADDRESS": head.address}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.pool_probe"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str, *words: Any) -> Any:
        """Send a command and return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, *words]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["error"] is None, answer["error"]
        return answer["result"]

    def close(self) -> None:
        """End all pools, and the driver."""
        self.ask("end_pools")
        self.leave()

    def leave(self) -> None:
        """End the driver; the pools stay."""
        self._process.communicate(timeout=60)


def list_pools() -> list[str]:
    """The names of the pools that live."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)


def wait_for_idle(count: int) -> list[int]:
    """The processes of a pool's idle workers, once it has so many that have imported everything."""

    def find_idle() -> list[int] | None:
        for name in list_pools():
            try:
                pool = ray.get_actor(name, NAMESPACE)
                state = ray.get(pool.describe.remote(), timeout=TIMEOUT_S)
            except (ValueError, RayError):
                continue
            if state["idle"] == count and state["lent"] == 0:
                return list(state["pids"])
        return None

    return wait_for(find_idle, timeout_s=TIMEOUT_S)


def race(other_project: str) -> dict[str, int]:
    """Borrow all workers twice at once, and ask for those of a project without a pool."""
    (name,) = list_pools()
    _, kind, digest = name.split("/")
    client = _make_client(PoolIdentity("", kind == "gpu", digest))
    client_of_other = _make_client(PoolIdentity(other_project, kind == "gpu", digest))
    groups = [borrow_workers(each, CLUSTER) for each in (client_of_other, client, client)]
    numbers = [0 if group is None else len(group.workers) for group in groups]
    for group in groups:
        if group is not None:
            group.close()
    return {"other": numbers[0], "first": numbers[1], "second": numbers[2]}


def kill_pools() -> list[str]:
    """Kill the pools' actors."""
    names = list_pools()
    for name in names:
        ray.kill(ray.get_actor(name, NAMESPACE))
    return names


def list_reservations() -> int:
    """How many placement groups hold a part of the cluster."""
    table = ray.util.placement_group_table().values()
    return sum(group["state"] != "REMOVED" for group in table)


def end_pools() -> list[str]:
    """Let all pools end by themselves, as when their code is replaced."""
    names = list_pools()
    for name in names:
        ray.get_actor(name, NAMESPACE).replace.remote()
    wait_for(lambda: not list_pools() or None, timeout_s=60)
    return names


def _make_client(identity: PoolIdentity) -> PoolClient:
    return PoolClient(identity, PoolPolicy(2, 1, 0), {})


COMMANDS = {
    command.__name__: command
    for command in (list_pools, wait_for_idle, race, kill_pools, list_reservations, end_pools)
}


def main() -> int:
    """Answer commands until `end_pools`, or the end of the test."""
    ray.init(log_to_driver=False, logging_level="ERROR")
    for line in sys.stdin:
        name, *words = json.loads(line)
        answer: dict[str, Any] = {"result": None, "error": None}
        try:
            answer["result"] = COMMANDS[name](*words)
        except AssertionError as error:
            answer["error"] = f"{name}: {error}"
        print(json.dumps(answer), flush=True)
        if name == "end_pools":
            break
    return 0


def is_alive(pid: int) -> bool:
    """Whether a process lives and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


if __name__ == "__main__":
    sys.exit(main())
