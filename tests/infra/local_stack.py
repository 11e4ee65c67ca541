"""A local whole of a test's own, brought up and ended as `make up` and `make down` do it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.local.paths import ROOT, StackPaths
from infra.local.processes import MARK, find_processes
from infra.local.state import StackState, read_state

SLORA = str(Path(sys.executable).with_name("slora"))


@dataclass(frozen=True)
class RunningStack:
    """One, in a folder; its ports are free ones."""

    paths: StackPaths

    def run_up(self) -> subprocess.CompletedProcess[str]:
        return self._run_module("up")

    def run_down(self) -> subprocess.CompletedProcess[str]:
        return self._run_module("down")

    @property
    def state(self) -> StackState:
        state = read_state(self.paths.state)
        assert state is not None
        return state

    def list_processes(self) -> set[int]:
        """Every process of it."""
        state = self.state
        return {
            process.pid
            for name in ("storage", "ray", "service")
            for process in find_processes(
                f"{state.mark}-{name}", [state.components[name]] if name in state.components else []
            )
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a shell has after `. environment`, and nothing of what this one has."""
        assignments = shlex.split(self.paths.environment.read_text().replace("export ", ""))
        exported = dict(word.split("=", 1) for word in assignments)
        return {**clean_environment(), **exported}

    def run_slora(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The command line, as somebody in that shell uses it."""
        return subprocess.run(
            [SLORA, *arguments],
            env=self.environment,
            cwd=self.paths.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def build_command(self, name: str) -> list[str]:
        """What `make up` or `make down` runs."""
        return [sys.executable, "-m", f"infra.local.{name}", "--state", str(self.paths.folder)]

    def _run_module(self, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.build_command(name),
            env=clean_environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


def clean_environment() -> dict[str, str]:
    """This process's, without what names services, stores, clusters or another whole."""
    prefixes = ("AWS_", "RAY_", "SLORA_", MARK)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**inherited, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
