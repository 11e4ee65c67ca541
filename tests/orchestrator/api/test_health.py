"""Health of the service: loops that hang, a registry that cannot be written, ages in metrics."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import event

from orchestrator.control.bulkheads.loop_health import LoopHealth
from tests.orchestrator.api.builders import ApiHarness
from tests.orchestrator.control.clock import SettableClock

READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}


def test_a_loop_that_hangs_makes_the_service_unhealthy(api: ApiHarness):
    assert api.request("GET", "/healthz", None).status_code == 200
    clock = SettableClock(0.0)
    api.service.health = LoopHealth({"scheduler": 1.0, "housekeeping": 15.0}, clock=clock.now)
    clock.at = 1000.0
    api.service.health.beat("housekeeping")
    response = api.request("GET", "/healthz", None)
    assert response.status_code == 503 and "scheduler (1000 s)" in response.json()["detail"]
    assert "housekeeping" not in response.text
    api.service.health.beat("scheduler")
    assert api.request("GET", "/healthz", None).status_code == 200


def test_a_cluster_that_does_not_answer_makes_no_loop_late(api: ApiHarness):
    api.cluster.is_unreachable = True
    (reconciler,) = api.service.reconcilers.values()
    assert reconciler.reconcile() is False
    assert api.request("GET", "/healthz", None).status_code == 200


def test_a_registry_that_cannot_be_written_makes_the_service_not_ready(database_api: ApiHarness):
    api = database_api
    engine = api.service.database._engine
    statement = READ_ONLY[engine.dialect.name]
    engine.dispose()

    def forbid_writes(connection: Any, record: Any) -> None:
        with (
            connection.cursor() if engine.dialect.name == "postgresql" else _Plain(connection) as at
        ):
            at.execute(statement)
        if engine.dialect.name == "postgresql":
            connection.commit()

    event.listen(engine, "connect", forbid_writes)
    response = api.request("GET", "/readyz", None)
    assert response.status_code == 503 and "cannot be written" in response.json()["detail"]
    assert response.headers["retry-after"]
    assert api.request("GET", "/v1/me").status_code == 200, "it can still be read"


class _Plain:
    """A connection of SQLite as a context manager that commits nothing."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __enter__(self) -> Any:
        return self._connection

    def __exit__(self, *_: object) -> None:
        pass


def test_a_service_that_can_write_is_ready(database_api: ApiHarness):
    assert database_api.request("GET", "/readyz", None).status_code == 200


def test_metrics_have_the_ages_of_loops_and_of_answers(api: ApiHarness):
    text = api.request("GET", "/metrics").text
    for loop in ("cluster default", "scheduler", "housekeeping", "liveness"):
        assert re.search(rf'slora_loop_age_seconds{{loop="{loop}"}} [0-9.e-]+', text)
    assert re.search(r'slora_cluster_last_answer_seconds{cluster="default"} [0-9.e-]+', text)
