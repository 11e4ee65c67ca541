"""Two services on one PostgreSQL and one cluster; the one that holds the leases is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from orchestrator.api.app import make_app
from orchestrator.cluster.base import Job, JobStatus
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.config import parse_config
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, schedules, tokens
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnreachable
from orchestrator.registry.schedules import NewSchedule
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.api.builders import serve_app
from tests.orchestrator.api.test_streams import StreamMessage, parse_messages
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.conftest import Postgres
from tests.orchestrator.control.builders import make_spec
from tests.waiting import wait_for

LEASE_S = 1
DEADLINE_S = 120.0
RUNS = 3
"""Submissions to each service before one is killed, and again afterwards."""

pytestmark = pytest.mark.postgres


class MortalDatabase(Database):
    """A database that answers its service no more once that was killed."""

    is_dead = False

    @contextmanager
    def read(self) -> Iterator[Session]:
        self._check_alive()
        with super().read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        self._check_alive()
        with super().write() as session:
            yield session
            # What a process has not committed when it is killed is rolled back.
            self._check_alive()

    def _check_alive(self) -> None:
        if self.is_dead:
            raise DatabaseUnreachable("postgresql://", "this service was killed")


class ClusterConnection:
    """One service's connection to the cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.name, self._cluster, self.is_dead = cluster.name, cluster, False
        self.submissions = 0

    def submit(self, job: Job) -> None:
        self._get().submit(job)
        self.submissions += 1

    def list_jobs(self) -> dict[str, JobStatus]:
        return self._get().list_jobs()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def _get(self) -> FakeCluster:
        if self.is_dead:
            raise ClusterUnreachable(self.name, "this service was killed")
        return self._cluster

    def close(self) -> None:
        """Leave the cluster to the other service."""


class Replica:
    """A service with its API, which can be killed: it releases nothing and finishes nothing."""

    def __init__(self, url: str, store: str, cluster: FakeCluster, secret: str) -> None:
        config = parse_config(
            {
                "database": url,
                "stores": [store],
                "clusters": {"default": {"address": "http://127.0.0.1:1"}},
                "lease_s": LEASE_S,
                "poll_interval_s": 0.05,
            }
        )
        self.database, self.cluster = MortalDatabase(url), ClusterConnection(cluster)
        self.service = Service(config, self.database, {"default": self.cluster})
        self._stack, self._store = ExitStack(), store
        address = self._stack.enter_context(serve_app(make_app(self.service, poll_interval_s=0.02)))
        headers = {"Authorization": f"Bearer {secret}"}
        self.http = self._stack.enter_context(
            httpx.Client(base_url=address, headers=headers, timeout=DEADLINE_S, trust_env=False)
        )
        self.service.start()

    def submit(self, name: str) -> str:
        response = self.http.post("/v1/runs", json={"spec": make_spec(self._store, name=name)})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def list_statuses(self) -> dict[str, str]:
        response = self.http.get("/v1/runs", params={"limit": 200})
        assert response.status_code == 200, response.text
        return {run["id"]: run["status"] for run in response.json()["items"]}

    def read_events(self, run: str, last_id: str | None = None) -> list[StreamMessage]:
        """Follow the events of a run to its end."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        return parse_messages(self.http.get(f"/v1/runs/{run}/events", headers=headers).text)

    @property
    def holder(self) -> str:
        return self.service._holder

    def kill(self) -> None:
        self.database.is_dead = self.cluster.is_dead = True

    def close(self) -> None:
        self.service.close()
        self._stack.close()
        self.database.close()


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    url = postgres.new_database(tables=True)
    yield url
    postgres.drop(url)


@pytest.fixture
def observer(url: str) -> Iterator[Database]:
    """A connection that belongs to no service."""
    database = Database(url)
    yield database
    database.close()


def read_holders(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {row.name: row.holder for row in session.execute(text("SELECT * FROM leases"))}


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    """A cluster whose jobs commit an adapter."""
    folder, store = make_adapter_folder(tmp_path / "adapter"), open_store(f"file://{tmp_path}/s")

    def commit_adapter(job: Job) -> None:
        run, attempt = job.metadata["run"], int(job.metadata["attempt"])
        commit(store, folder, make_draft(name=run.split("-2")[0], run=run, attempt=attempt))

    cluster = FakeCluster()
    cluster.on_start = commit_adapter
    return cluster


@pytest.fixture
def replicas(
    url: str, observer: Database, cluster: FakeCluster, tmp_path: Path
) -> Iterator[list[Replica]]:
    store = f"file://{tmp_path}/s"
    with observer.write() as session:
        projects.ensure_project(session, "default")
        _, secret = tokens.issue(session, "test", "admin")
    pair = [Replica(url, store, cluster, secret) for _ in range(2)]
    yield pair
    for replica in pair:
        replica.close()


def test_a_killed_replica_loses_and_repeats_nothing(
    replicas: list[Replica], observer: Database, cluster: FakeCluster, tmp_path: Path
):
    spec = make_spec(f"file://{tmp_path}/s", name="yearly")
    new = NewSchedule(name="yearly", cron="0 0 1 1 *", kind="finetune", missed="latest", spec=spec)
    with observer.write() as session:
        schedule = schedules.add(session, new, next_at=1.0)
    accepted = [replica.submit(f"n{number}") for number in range(RUNS) for replica in replicas]
    # Each service answers for the runs of the other.
    assert all(set(accepted) <= set(replica.list_statuses()) for replica in replicas)
    first = accepted[0]
    early = replicas[0].read_events(first)
    assert early == replicas[1].read_events(first) and early[-1].event == "end"

    holder = wait_for(lambda: read_holders(observer).get("cluster.default"), timeout_s=DEADLINE_S)
    (killed,) = (replica for replica in replicas if replica.holder == holder)
    (survivor,) = (replica for replica in replicas if replica is not killed)
    accepted += [replica.submit(f"m{number}") for number in range(RUNS) for replica in replicas]
    killed.kill()
    assert killed.http.get("/readyz").status_code == 503
    accepted += [survivor.submit(f"l{number}") for number in range(RUNS)]

    def list_when_done() -> dict[str, str] | None:
        statuses = survivor.list_statuses()
        return statuses if all(statuses[run] == "done" for run in accepted) else None

    statuses = wait_for(list_when_done, timeout_s=DEADLINE_S)
    holders = read_holders(observer)
    assert holders["cluster.default"] == survivor.holder and survivor.cluster.submissions >= RUNS
    wait_for(
        lambda: read_holders(observer)["scheduler"] == survivor.holder or None,
        timeout_s=DEADLINE_S,
    )
    assert Counter(job.metadata["run"] for job in cluster.started_jobs) == Counter(list(statuses))
    assert cluster.stopped_ids == []
    with observer.read() as session:
        assert len(schedules.list_firings(session, schedule)) == 1
    # A stream that broke with the killed service resumes at the other without a gap.
    for run in (first, accepted[-1]):
        messages = survivor.read_events(run)
        kinds = [message.data.get("kind") for message in messages[:-1]]
        assert kinds[0] == "planned" and kinds[-1] == "done"
        assert survivor.read_events(run, last_id=messages[1].id) == messages[2:]
