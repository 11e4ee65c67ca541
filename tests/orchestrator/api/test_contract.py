"""Requests generated from the OpenAPI document: every response matches it, and none is a 500."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.checks import positive_data_acceptance

from orchestrator.api.document import build_document
from orchestrator.registry.database import Database
from tests.orchestrator.api.builders import ApiHarness, open_harness, serve_app

SKIPPED = [
    # The rules of a spec are not part of this document: a body that the document allows may still
    # contain an invalid spec.
    positive_data_acceptance,
]

schema = schemathesis.openapi.from_dict(build_document())


@dataclass(frozen=True)
class RunningApi:
    """An API with a run, on a real server."""

    api: ApiHarness
    address: str


@pytest.fixture(scope="module")
def running_api(
    migrated_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApi]:
    folder = tmp_path_factory.mktemp("contract")
    shutil.copy(migrated_file, folder / "registry.db")
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    with open_harness(database, f"file://{folder / 'store'}") as harness:
        harness.submit()
        with serve_app(harness.app) as address:
            yield RunningApi(harness, address)
    database.close()


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_response_matches_the_document(case: Case, running_api: RunningApi):
    # Following a run that never ends would not end either.
    if case.path.endswith("/log") and case.method == "GET":
        case.query = {**(case.query or {}), "follow": "false"}
    headers = {"Authorization": f"Bearer {running_api.api.secrets['admin', None]}"}
    case.call_and_validate(base_url=running_api.address, headers=headers, excluded_checks=SKIPPED)


def test_all_checks_are_registered():
    assert len(CHECKS.get_all()) > 8
