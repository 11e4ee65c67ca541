"""The phases of a run's start through the API."""

from __future__ import annotations

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.orchestrator.api.builders import ApiHarness
from tests.orchestrator.phase_events import T0, write_phases


def test_a_runs_starts_are_read_from_its_events_and_hostile_ones_are_left_out(api: ApiHarness):
    run = api.submit()
    path = f"/v1/runs/{run}/starts"
    assert api.request("GET", path, "viewer").json() == {"starts": []}
    write_phases(RunStore(open_store(api.service.config.stores[0]), run))
    response = api.request("GET", path, "viewer")
    assert response.status_code == 200
    first, second = response.json()["starts"]
    assert first == {
        "attempt": 1,
        "since": T0 + 1,
        "wait_s": 4.0,
        "complete": True,
        "phases": {"queue": 1.5, "base": 2.0, "first_step": 0.5},
    }
    assert (second["attempt"], second["complete"]) == (2, False)


def test_another_projects_run_has_no_starts_for_a_token(api: ApiHarness):
    run = api.submit()
    assert api.request("GET", f"/v1/runs/{run}/starts", "viewer", "other").status_code == 404
