"""A local stack for a test, started and stopped as `make up` and `make down` do it."""

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
    """A local stack in a folder, with free ports."""

    paths: StackPaths

    def run_up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run_module("up", *arguments)

    def run_down(self) -> subprocess.CompletedProcess[str]:
        return self._run_module("down")

    @property
    def state(self) -> StackState:
        state = read_state(self.paths.state)
        assert state is not None
        return state

    def list_processes(self) -> set[int]:
        """Return the pids of all its processes."""
        state = self.state
        return {
            process.pid
            for name in ("storage", "ray", "service", "serving")
            for process in find_processes(
                f"{state.mark}-{name}", [state.components[name]] if name in state.components else []
            )
        }

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a shell after `. environment`, without our own settings."""
        assignments = shlex.split(self.paths.environment.read_text().replace("export ", ""))
        exported = dict(word.split("=", 1) for word in assignments)
        return {**clean_environment(), **exported}

    def run_slora(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command line in that environment."""
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
        """Return the command of `make up` or `make down`."""
        return [sys.executable, "-m", f"infra.local.{name}", "--state", str(self.paths.folder)]

    def _run_module(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.build_command(name), *arguments],
            env=clean_environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


def clean_environment() -> dict[str, str]:
    """Return our environment, without settings of services, stores, clusters or other stacks."""
    prefixes = ("AWS_", "RAY_", "SLORA_", MARK)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**inherited, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
