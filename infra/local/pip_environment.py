"""Steps that make a virtual environment: a lock, named commands, and a look at what is there."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EnvironmentNotMade(Exception):
    """A step of the installation failed; the message has the end of its output."""


def has_package(python: Path, package: str, version: str) -> bool:
    """Return whether an environment has a version, with or without a local part as in +cpu."""
    found = python.parents[1].glob(f"lib/python*/site-packages/{package}-{version}*.dist-info")
    return any(found)


def install_packages(python: Path, *arguments: str, step: str) -> None:
    """Run pip. Raise EnvironmentNotMade."""
    run_step(
        str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments,
        step=step,
    )  # fmt: skip


def run_step(*command: str, step: str) -> None:
    """Run a command after a line that says what it is for. Raise EnvironmentNotMade."""
    print(f"== {step}", file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = "\n".join((result.stdout + result.stderr).strip().splitlines()[-12:])
        raise EnvironmentNotMade(f"{step} failed with code {result.returncode}:\n{last}")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from the same folder, which is made if it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
