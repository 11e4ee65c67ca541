"""Follow all deployments of a service: one at a time, in turn, under one lease.

A deployment that fails, or whose server does not answer, is left alone for a while, and the others
go on. Two services that both believe to hold the lease do no harm: each action can be repeated, and
the record in the store is written by compare-and-swap.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from jobs.errors import InputError, StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.control.bulkheads.item_guard import ItemFailure, ItemGuard
from orchestrator.deployments.deployment_record import (
    DeploymentRecord,
    HistoryEntry,
    get_deployment_key,
    list_deployments,
    read_deployment,
)
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.errors import TargetUnreachable
from orchestrator.deployments.open_target import find_endpoint, open_target
from orchestrator.deployments.rollout_driver import RolloutDriver, note_problem
from orchestrator.deployments.serving_target import ServingTarget
from orchestrator.registry import adapters
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseLost
from orchestrator.registry.leases import LeaseKeeper
from orchestrator.registry.tenancy import audit_log
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.tenancy.project_store import get_project_store

LEASE_NAME = "deployments"
LEASE_S = 30.0
MIN_WAIT_S, MAX_WAIT_S = 2.0, 60.0
"""A server that does not answer is asked again after so long; the wait doubles."""

TargetMaker = Callable[[str, EndpointConfig], ServingTarget]

log = logging.getLogger(__name__)


class DeploymentFollower:
    """Follows the deployments of the projects that may use an endpoint."""

    def __init__(
        self,
        database: Database,
        endpoints: Mapping[str, EndpointConfig],
        stores: Iterable[str],
        *,
        holder: str,
        guard: ItemGuard,
        on_progress: Callable[[], None] = lambda: None,
        lease_s: float = LEASE_S,
        store_opener: Callable[[str], ObjectStore] = open_store,
        target_maker: TargetMaker = open_target,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._endpoints, self._stores = database, endpoints, tuple(stores)
        self._guard, self._open, self._make_target = guard, store_opener, target_maker
        self._clock, self._lease_s, self._on_progress = clock, lease_s, on_progress
        self._lease = LeaseKeeper(database, LEASE_NAME, holder, seconds=lease_s)
        self._renewed_at = -lease_s
        self._waits: dict[tuple[str, str], tuple[int, float]] = {}

    def follow_all(self) -> int:
        """Let every deployment settle. Return their number. Raise DatabaseUnreachable."""
        if not self._renew_lease():
            return 0
        targets: dict[str, ServingTarget | TargetUnreachable] = {}
        count = 0
        try:
            for project, url in self._list_stores():
                store = self._open(url)
                for name in self._list_names(store):
                    item = f"{project}/{name}"
                    step = partial(self._follow, store, project, name, targets)
                    self._guard.run("deployment", item, step, end=_log_failure)
                    count += 1
        finally:
            for target in targets.values():
                if not isinstance(target, TargetUnreachable):
                    target.close()
        return count

    def retry_soon(self) -> None:
        """Ask every server again in the next round, because somebody changed a deployment."""
        self._waits.clear()

    def close(self) -> None:
        """Release the lease, so that another service continues at once."""
        self._lease.release()

    def _list_stores(self) -> list[tuple[str, str]]:
        projects = sorted({name for config in self._endpoints.values() for name in config.projects})
        return [
            (project, get_project_store(store, project))
            for project in projects
            for store in self._stores
        ]

    def _list_names(self, store: ObjectStore) -> list[str]:
        """List the deployments of a store; none of one that does not answer."""
        try:
            return list(list_deployments(store))
        except (StoreError, InputError) as error:
            log.warning("the deployments of %s cannot be listed: %s", store.url(""), error)
            return []

    def _follow(
        self,
        store: ObjectStore,
        project: str,
        name: str,
        targets: dict[str, ServingTarget | TargetUnreachable],
    ) -> None:
        key = (store.url(""), name)
        failures, until = self._waits.get(key, (0, 0.0))
        if self._clock() < until:
            return
        problem = self._settle(store, project, name, targets)
        if problem is None:
            self._waits.pop(key, None)
            return
        wait_s = min(MAX_WAIT_S, MIN_WAIT_S * 2.0 ** min(failures, 10))
        self._waits[key] = (failures + 1, self._clock() + wait_s)
        log.warning("deployment %s of %s waits: %s", name, project, problem)

    def _settle(
        self,
        store: ObjectStore,
        project: str,
        name: str,
        targets: dict[str, ServingTarget | TargetUnreachable],
    ) -> str | None:
        """Act until nothing is left to do. Return why the rest has to wait, or None."""
        try:
            record = read_deployment(store, name)[0]
        except StoreError as error:
            return str(error)
        endpoint = record.endpoint
        try:
            # Asked for each record: others than the service may write to a project's store.
            config = find_endpoint(self._endpoints, endpoint, allow_url=False, project=project)
        except InputError as error:
            if not record.removing:
                return note_problem(store, name, str(error))
            # The endpoint is not configured any more: only the record is left to remove.
            return _delete_record(store, name)
        if endpoint not in targets:
            targets[endpoint] = self._open_target(endpoint, config)
        target = targets[endpoint]
        if isinstance(target, TargetUnreachable):
            return note_problem(store, name, str(target))
        driver = RolloutDriver(
            store,
            target,
            on_event=partial(self._audit, store, project),
            on_progress=self._keep_lease,
            min_move=partial(self._read_last_move, store),
        )
        return driver.settle(name)

    def _open_target(
        self, endpoint: str, config: EndpointConfig
    ) -> ServingTarget | TargetUnreachable:
        """Open the endpoint, or return the error: others of the round need not wait for it too."""
        try:
            return self._make_target(endpoint, config)
        except TargetUnreachable as error:
            return error

    def _keep_lease(self) -> None:
        self._on_progress()
        if not self._renew_lease():
            raise LeaseLost(LEASE_NAME, "this service", 0)

    def _renew_lease(self) -> bool:
        now = self._clock()
        if now - self._renewed_at < self._lease_s / 3:
            return True
        is_held = self._lease.ensure() is not None
        self._renewed_at = now if is_held else -self._lease_s
        return is_held

    def _read_last_move(self, store: ObjectStore, adapter: str) -> int:
        with self._database.read() as session:
            pointer = adapters.get_pointer(session, store.url("").rstrip("/"), adapter)
        return pointer.move if pointer else 0

    def _audit(
        self, store: ObjectStore, project: str, deployment: DeploymentRecord, entry: HistoryEntry
    ) -> None:
        with self._database.write() as session:
            audit_log.record(
                session,
                SERVICE,
                action=entry.event,
                object_kind="deployment",
                object=deployment.name,
                project=project,
                after=describe_change(store, deployment, entry),
            )


def describe_change(
    store: ObjectStore, deployment: DeploymentRecord, entry: HistoryEntry
) -> dict[str, object]:
    """Return what the audit log tells about an event of a deployment."""
    values = {
        "version": entry.version,
        "detail": entry.detail,
        "endpoint": deployment.endpoint,
        "live": deployment.live,
        "store": store.url("").rstrip("/"),
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


def record_act(
    database: Database,
    actor: Actor,
    store: ObjectStore,
    project: str,
    deployment: DeploymentRecord,
    action: str,
) -> None:
    """Record what somebody did to a deployment."""
    with database.write() as session:
        audit_log.record(
            session,
            actor,
            action=action,
            object_kind="deployment",
            object=deployment.name,
            project=project,
            after=describe_change(store, deployment, deployment.history[-1]),
        )


def _delete_record(store: ObjectStore, name: str) -> str | None:
    """Delete a record, and return why it has to wait, or None."""
    try:
        store.delete(get_deployment_key(name))
    except StoreError as error:
        return str(error)
    return None


def _log_failure(failure: ItemFailure) -> None:
    log.error("a deployment is left alone for a while: %s", failure.detail)
