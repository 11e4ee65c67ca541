"""The code that travels: the same bytes for the same files, and what a job on the cluster runs."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.cluster.code import Code, code_of, packed
from orchestrator.cluster.door import Job, Seen
from orchestrator.cluster.ray_jobs import RayCluster
from tests.ray_head import Head

ROOT = Path(__file__).parents[3]


def checkout(folder: Path, probe: str = "print('hello')") -> Path:
    for name in ("slora", "jobs", "orchestrator"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text("")
    (folder / "jobs" / "probe.py").write_text(probe)
    return folder


def names(code: Code) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(code.content)).namelist()


def test_the_same_files_make_the_same_package_whenever_and_wherever(tmp_path: Path):
    one, other = checkout(tmp_path / "a"), checkout(tmp_path / "b")
    for path in other.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o600)
    (other / "jobs" / "__pycache__").mkdir()
    (other / "jobs" / "__pycache__" / "probe.pyc").write_bytes(b"x")
    (other / "README.md").write_text("not code")
    assert packed(one) == packed(other)
    checkout(other, "print('other')")
    assert packed(one).name != packed(other).name


def test_what_is_hidden_or_a_link_stays_here(tmp_path: Path):
    there = checkout(tmp_path / "code")
    (there / "jobs" / ".env").write_text("SECRET=1")
    (tmp_path / "secret").write_text("secret")
    (there / "jobs" / "link.py").symlink_to(tmp_path / "secret")
    assert names(packed(there)) == [
        "slora/__init__.py", "jobs/__init__.py", "jobs/probe.py", "orchestrator/__init__.py",
    ]  # fmt: skip


def test_this_checkout_can_be_packed_with_all_that_a_job_reads():
    found = names(packed(ROOT))
    assert {"jobs/finetune.py", "jobs/examples/chat.yaml", "slora/sparse.py"} <= set(found)
    assert any(name.startswith("orchestrator/registry/migrations/") for name in found)
    assert not any(name.endswith(".pyc") or name.startswith("tests/") for name in found)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="has no slora, jobs, orchestrator"):
        code_of(str(tmp_path))
    assert code_of("image") is None


@pytest.mark.ray
def test_a_job_runs_the_code_that_was_sent(head: Head, token: Path, tmp_path: Path):
    code = packed(checkout(tmp_path / "code", "print('sent along')"))
    cluster = RayCluster("here", head.url, token=token, code=code, python=sys.executable)
    for name in ("sent-a1", "sent-a2"):
        cluster.submit(Job(name, "jobs.probe", (), {"slora_service": "test"}))
        until = time.monotonic() + 60
        while (sight := cluster.look(name)).seen in (Seen.PENDING, Seen.RUNNING):
            assert time.monotonic() < until
            threading.Event().wait(0.1)
        assert sight.seen is Seen.SUCCEEDED, sight.message
        assert b"sent along" in cluster.log(name)
    cluster.close()
