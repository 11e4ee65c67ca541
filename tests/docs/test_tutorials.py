"""The tutorials work: every command of their `sh` blocks succeeds, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_head import Head

ROOT = Path(__file__).parents[2]
TUTORIALS = ("chat", "search", "retrain", "federation")


def read_commands(name: str) -> list[str]:
    """Return the lines of all `sh` blocks of a tutorial."""
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_commands_of_a_tutorial_succeed(name: str, head: Head, tmp_path: Path):
    # The reader's folder: examples, demo scripts and prepared data, and a store of its own.
    for entry in ("jobs", "infra", "constraints.txt"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    (tmp_path / ".cache").mkdir()
    for entry in ("models", "data", "packages"):
        if (ROOT / ".cache" / entry).exists():
            (tmp_path / ".cache" / entry).symlink_to(ROOT / ".cache" / entry)
    head.wait_for_agent()
    environment = {
        **head.environment,
        "RAY_ADDRESS": head.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in read_commands(name):
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, f"$ {command}\n{result.stdout}\n{result.stderr}"


def test_every_tutorial_has_commands_that_train():
    for name in TUTORIALS:
        commands = "\n".join(read_commands(name))
        assert "slora plan jobs/examples/" in commands, name
        assert "slora train " in commands or "slora search " in commands, name
