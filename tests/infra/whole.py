"""A local whole of a test's own, brought up and ended as `make up` and `make down` do it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.local.home import ROOT, Home
from infra.local.processes import MARK, family
from infra.local.state import State, read_state

SLORA = str(Path(sys.executable).with_name("slora"))


@dataclass(frozen=True)
class Whole:
    """One, in a folder; its ports are free ones."""

    home: Home

    def up(self) -> subprocess.CompletedProcess[str]:
        return self._module("up")

    def down(self) -> subprocess.CompletedProcess[str]:
        return self._module("down")

    @property
    def state(self) -> State:
        found = read_state(self.home.state)
        assert found is not None
        return found

    def processes(self) -> set[int]:
        """Every process of it."""
        state = self.state
        return {
            process.pid
            for name in ("storage", "ray", "service")
            for process in family(
                f"{state.mark}-{name}", [state.parts[name]] if name in state.parts else []
            )
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a shell has after `. environment`, and nothing of what this one has."""
        words = shlex.split(self.home.environment.read_text().replace("export ", ""))
        told = dict(word.split("=", 1) for word in words)
        return {**plain_environment(), **told}

    def slora(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The command line, as somebody in that shell uses it."""
        return subprocess.run(
            [SLORA, *words],
            env=self.environment,
            cwd=self.home.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def command(self, name: str) -> list[str]:
        """What `make up` or `make down` runs."""
        return [sys.executable, "-m", f"infra.local.{name}", "--state", str(self.home.folder)]

    def _module(self, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name),
            env=plain_environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


def plain_environment() -> dict[str, str]:
    """This process's, without what names services, stores, clusters or another whole."""
    ours = ("AWS_", "RAY_", "SLORA_", MARK)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
