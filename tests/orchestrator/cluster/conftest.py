"""One real Ray head for this folder, and servers that play a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.code_package import pack_code
from orchestrator.cluster.ray_jobs import RayCluster
from tests.orchestrator.cluster.server import ScriptedDashboard
from tests.ray_head import Head, ray_head

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head whose jobs can import these tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))
        with ray_head(tmp_path_factory.mktemp("ray")) as running:
            yield running


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
