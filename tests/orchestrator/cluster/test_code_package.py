"""The code package: the same bytes for the same files, and jobs that run its code."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.cluster.base import Job, JobState, JobStatus
from orchestrator.cluster.code_package import CodePackage, make_code_package, pack_code
from orchestrator.cluster.ray_jobs import RayCluster
from tests.ray_head import Head
from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]


def make_checkout(folder: Path, probe: str = "print('hello')") -> Path:
    for name in ("slora", "jobs", "orchestrator"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text("")
    (folder / "jobs" / "probe.py").write_text(probe)
    return folder


def list_names(package: CodePackage) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(package.content)).namelist()


def test_the_same_files_make_the_same_package(tmp_path: Path):
    first, other = make_checkout(tmp_path / "a"), make_checkout(tmp_path / "b")
    for path in other.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o600)
    (other / "jobs" / "__pycache__").mkdir()
    (other / "jobs" / "__pycache__" / "probe.pyc").write_bytes(b"x")
    (other / "README.md").write_text("not code")
    assert pack_code(first) == pack_code(other)
    make_checkout(other, "print('other')")
    assert pack_code(first).name != pack_code(other).name


def test_hidden_files_and_links_are_not_packed(tmp_path: Path):
    root = make_checkout(tmp_path / "code")
    (root / "jobs" / ".env").write_text("SECRET=1")
    (tmp_path / "secret").write_text("secret")
    (root / "jobs" / "link.py").symlink_to(tmp_path / "secret")
    assert list_names(pack_code(root)) == [
        "slora/__init__.py", "jobs/__init__.py", "jobs/probe.py", "orchestrator/__init__.py",
    ]  # fmt: skip


def test_this_checkout_is_packed_with_all_that_a_job_reads():
    packed_names = list_names(pack_code(ROOT))
    assert {"jobs/finetune.py", "jobs/examples/chat.yaml", "slora/layers/sparse.py"} <= set(
        packed_names
    )
    assert any(name.startswith("orchestrator/registry/migrations/") for name in packed_names)
    assert not any(name.endswith(".pyc") or name.startswith("tests/") for name in packed_names)


def test_a_folder_that_is_no_checkout_is_rejected(tmp_path: Path):
    with pytest.raises(InputError, match="has no slora, jobs, orchestrator"):
        make_code_package(str(tmp_path))
    assert make_code_package("image") is None


@pytest.mark.ray
def test_a_job_runs_the_uploaded_code(head: Head, token: Path, tmp_path: Path):
    package = pack_code(make_checkout(tmp_path / "code", "print('sent along')"))
    cluster = RayCluster("here", head.url, token=token, package=package, python=sys.executable)
    for name in ("sent-a1", "sent-a2"):
        cluster.submit(Job(name, "jobs.probe", (), {"slora_service": "test"}))
        status = wait_for(lambda name=name: _read_end(cluster, name), timeout_s=60)
        assert status.state is JobState.SUCCEEDED, status.message
        assert b"sent along" in cluster.read_log(name)
    cluster.close()


def _read_end(cluster: RayCluster, name: str) -> JobStatus | None:
    status = cluster.get_status(name)
    return None if status.state in (JobState.PENDING, JobState.RUNNING) else status
