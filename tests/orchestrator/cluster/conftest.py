"""Fixtures for clusters: the token of the real Ray head, and a server that plays a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.code_package import pack_code
from orchestrator.cluster.ray_jobs import RayCluster
from tests.orchestrator.cluster.server import ScriptedDashboard
from tests.ray_head import Head


@pytest.fixture(scope="session")
def token(head: Head) -> Path:
    return Path(head.environment["RAY_AUTH_TOKEN_PATH"])


@pytest.fixture
def server() -> Iterator[ScriptedDashboard]:
    with ScriptedDashboard() as running:
        yield running


@pytest.fixture
def behind(server: ScriptedDashboard, tmp_path: Path) -> Iterator[RayCluster]:
    """Provide a cluster at the server's address, with a token and a code package."""
    (tmp_path / "token").write_text("secret-token\n")
    for name in ("slora", "jobs", "orchestrator"):
        (tmp_path / "code" / name).mkdir(parents=True)
        (tmp_path / "code" / name / "__init__.py").write_text("")
    cluster = RayCluster(
        "far",
        server.url,
        token=tmp_path / "token",
        package=pack_code(tmp_path / "code"),
        timeout_s=0.5,
    )
    yield cluster
    cluster.close()
