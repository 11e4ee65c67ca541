"""Shutting down a Ray started here: orphans end, and processes that existed before do not."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

SCENE = """
import subprocess, sys
from pathlib import Path
from orchestrator.cli.local_ray import _claim_orphans, _end_ray

_claim_orphans()
bystander = subprocess.Popen(["sleep", "60"])
import psutil
existing = set(psutil.Process().children())
head = subprocess.Popen(
    ["bash", "-c", "env -i setsid sleep 60 & echo $!"], stdout=subprocess.PIPE, text=True
)
orphan = int(head.stdout.readline())
head.wait()
_end_ray(head, Path("no such token"), excluded=existing)
print(orphan, bystander.pid, bystander.poll())
bystander.kill()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_an_orphan_without_our_token_is_ended_and_a_process_of_before_is_not():
    done = subprocess.run(
        [sys.executable, "-c", SCENE], capture_output=True, text=True, check=True, timeout=60
    )
    orphan, _, state = done.stdout.split()
    assert not psutil.pid_exists(int(orphan))
    assert state == "None"
