"""The pool: a detached actor that starts idle workers, lends each of them once, and ends when idle.

Its workers reserve no CPU and no GPU. They are its children: whatever ends the pool ends them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.train.pool.decisions import PoolState, choose_nodes, decide, spread_workers
from jobs.train.pool.pool_identity import NAMESPACE, PoolIdentity
from jobs.train.pool.warm_worker import THREADS, WarmWorker

INTERVAL_S = 1.0
"""Seconds between two decisions."""


@dataclass(frozen=True)
class PoolPolicy:
    """What a pool keeps, as its newest borrower asks for it."""

    target: int
    cpus_per_worker: float
    gpus_per_worker: float


@dataclass
class _Member:
    node: str
    handle: Any
    is_lent: bool = False


class WorkerPool:
    """The class of the actor."""

    # Ray awaits the constructor of an actor with coroutines, so that it has a loop.
    async def __init__(self, identity: PoolIdentity, policy: PoolPolicy) -> None:  # type: ignore[misc]
        self._identity, self._policy = identity, policy
        self._members: list[_Member] = []
        self._used_at, self._is_due, self._is_replaced = time.monotonic(), True, False
        self._watches = {asyncio.ensure_future(self._run())}

    async def lend(
        self, count: int, lease: list[Any], policy: PoolPolicy, wanted: list[str] | None = None
    ) -> list[tuple[str, Any]]:
        """Lend `count` workers, some of which may still be importing. All or none.

        Return a pair of node id and handle for each. They end with the owner of `lease[0]`.
        `wanted`: the node that each of them must be on.
        """
        self._policy, self._used_at = policy, time.monotonic()
        idle = [member for member in self._members if not member.is_lent]
        nodes = choose_nodes([member.node for member in idle], count, wanted=wanted)
        if nodes is None:
            return []
        lent = []
        for node in nodes:
            member = next(member for member in idle if member.node == node and not member.is_lent)
            member.is_lent = self._is_due = True
            # Before the reply: a borrower that dies on its way leaves no worker behind.
            member.handle.lend.remote(lease)
            lent.append((node, member.handle))
        return lent

    async def hold(self) -> None:
        """Never return: the reference to this call is a lease, which its owner's end breaks."""
        await asyncio.Event().wait()

    async def keep(self, policy: PoolPolicy) -> None:
        """Keep so many workers from now on."""
        self._policy, self._used_at = policy, time.monotonic()

    async def describe(self) -> dict[str, Any]:
        """Return the numbers of idle and lent workers, and the idle ones' process ids."""
        idle = [member for member in self._members if not member.is_lent]
        pids = [await member.handle.get_process_id.remote() for member in idle]
        return {"idle": len(idle), "lent": len(self._members) - len(idle), "pids": pids}

    async def replace(self) -> None:
        """End as soon as no worker is lent: a pool of other code has taken over."""
        self._is_replaced = True

    async def _run(self) -> None:
        await self._replace_others()
        while not (decision := decide(self._get_state())).end:
            if decision.start:
                self._start_workers(decision.start)
            await asyncio.sleep(INTERVAL_S)
        ray.kill(ray.get_runtime_context().current_actor)

    def _get_state(self) -> PoolState:
        lent = sum(member.is_lent for member in self._members)
        if lent:
            self._used_at = time.monotonic()
        return PoolState(
            target=min(self._policy.target, sum(self._list_capacities().values())),
            idle=len(self._members) - lent,
            lent=lent,
            free_cpus=ray.available_resources().get("CPU", 0.0),
            idle_s=time.monotonic() - self._used_at,
            is_due=self._is_due,
            is_replaced=self._is_replaced,
        )

    def _start_workers(self, count: int) -> None:
        self._is_due = False
        present = Counter(member.node for member in self._members if not member.is_lent)
        for node in spread_workers(count, self._list_capacities(), present):
            handle = (
                ray.remote(WarmWorker)
                .options(
                    num_cpus=0,
                    max_concurrency=THREADS,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote(gpu=self._identity.gpu)
            )
            member = _Member(node, handle)
            self._members.append(member)
            watch = asyncio.ensure_future(self._watch(member))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    def _list_capacities(self) -> dict[str, int]:
        """Return how many workers of a run fit each node when nothing else runs there."""
        policy, capacities = self._policy, dict[str, int]()
        for node in ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                fits = resources.get("CPU", 0) // max(policy.cpus_per_worker, 1)
                if policy.gpus_per_worker:
                    fits = min(fits, resources.get("GPU", 0) // policy.gpus_per_worker)
                capacities[node["NodeID"]] = int(fits)
        return capacities

    async def _watch(self, member: _Member) -> None:
        """Forget a worker that has ended: after its run, by a lack of memory, with its node."""
        with suppress(RayError):
            await member.handle.wait_for_end.remote()
        self._members.remove(member)

    async def _replace_others(self) -> None:
        """Let the pools of this project end that no run will borrow from any more."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            is_relative = actor["namespace"] == NAMESPACE and name.startswith(self._identity.family)
            if is_relative and name != self._identity.name:
                # It may end by itself meanwhile.
                with suppress(RayError, ValueError):
                    ray.get_actor(name, NAMESPACE).replace.remote()
