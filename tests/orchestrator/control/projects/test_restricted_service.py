"""A whole service holds its own looks and its jobs to the places and masks of a project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.paths import format_profile
from jobs.places.boundary import get_places
from jobs.places.places import PROBLEM
from jobs.spec.strategies import get_allowed_masks
from jobs.store.local import DirectoryStore
from orchestrator.control.config import parse_config
from orchestrator.control.looking.look_protocol import LookRequest
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, runs
from orchestrator.registry.database import Database
from orchestrator.registry.values import ProjectInputs, ProjectLimits, Run
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.builders import make_spec
from tests.tiny import chat_rows, hollow_model
from tests.waiting import wait_for


class RestrictedService:
    """A service with a project that may read one folder of data and one model."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.cluster = FakeCluster()
        self.data, self.model = folder / "data", hollow_model(folder / "model")
        self.data.mkdir()
        self.keys = folder / "keys"
        self.keys.touch(0o600)
        self.keys.write_text(format_profile("lab-id", "lab-key"))
        store = DirectoryStore(folder / "store").url("")
        config = parse_config(
            {
                "stores": [store],
                "masks": ["loudest"],
                "projects": {"lab": {"credentials_file": str(self.keys)}},
                "clusters": {"default": {"address": "http://127.0.0.1:1",
                                         "shared_filesystem": True}},
            }
        )  # fmt: skip
        inputs = ProjectInputs(places=(str(self.data),), models=(str(self.model),))
        with database.write() as session:
            projects.add(session, "lab", ProjectLimits(), inputs)
        self.service = Service(config, database, {"default": self.cluster})

    def submit(self, path: Path) -> Run:
        spec: dict[str, Any] = make_spec(
            self.service.config.stores[0],
            model={"path": str(self.model)},
            data={"train": str(path), "max_length": 32},
            method={"rank": 2},
        )
        return self.service.intake.accept(SubmitRequest(spec=spec, project="lab"))[0]

    def wait_for_decision(self, run: Run) -> Run:
        """Return the run once it is refused, or has a job."""

        def find_decision() -> Run | None:
            self.service.reconcilers["default"].reconcile()
            with self.service.database.read() as session:
                current = runs.get(session, run.id)
            return current if current.status != run.status else None

        return wait_for(find_decision, timeout_s=300)


@pytest.fixture
def restricted(database: Database, open_folder: Path) -> Iterator[RestrictedService]:
    restricted = RestrictedService(database, open_folder)
    yield restricted
    restricted.service.close()


def test_a_job_gets_the_places_and_the_masks_that_its_project_may_use(
    restricted: RestrictedService,
):
    run = restricted.submit(chat_rows(restricted.data / "rows.jsonl", 4))
    assert restricted.wait_for_decision(run).attempt == 1
    (job,) = restricted.cluster.started_jobs
    places = get_places(job.environment)
    assert places is not None and places.data == (str(restricted.data),)
    assert places.models == (str(restricted.model),) and places.store == run.store
    assert get_allowed_masks(job.environment) == ("loudest",)


def test_the_services_own_look_does_not_follow_a_link_out_of_a_place(
    restricted: RestrictedService, open_folder: Path
):
    chat_rows(open_folder / "secret.jsonl", 4)
    (restricted.data / "link.jsonl").symlink_to(open_folder / "secret.jsonl")
    refused = restricted.wait_for_decision(restricted.submit(restricted.data / "link.jsonl"))
    assert f"data.train: {PROBLEM}" in refused.detail
    assert restricted.cluster.submitted_ids == []


def test_the_services_own_look_has_the_keys_of_its_project(restricted: RestrictedService):
    request = LookRequest(question="fingerprint_data", location=str(restricted.data))
    assert restricted.service.looks.submit("lab", request).result(300).store_error == ""
    restricted.keys.unlink()
    result = restricted.service.looks.submit("lab", request).result(300)
    assert "The project lab has no usable credentials" in result.store_error
