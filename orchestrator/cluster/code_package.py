"""Our packages as the versioned working directory of a job: a zip named by what is in it.

Ray keeps such a package in the head's memory, forgets it some minutes after its last user, and
loses it with the head: so it is asked for before every submission, and sent where it is not there.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from jobs.errors import Fault, InputError

PACKAGES = ("slora", "jobs", "orchestrator")
IMAGE = "image"
MAX_PACKAGE_BYTES = 64 << 20
"""Ours is below a megabyte; Ray itself takes half a gigabyte."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16


@dataclass(frozen=True)
class CodePackage:
    """One version of our packages, as Ray takes it."""

    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """What a job's runtime environment calls it."""
        return f"gcs://{self.name}"


def make_code_package(location: str) -> CodePackage | None:
    """The packages of a checkout; None where the image has them. Raises InputError."""
    return None if location == IMAGE else pack_code(Path(location).expanduser())


def pack_code(root: Path) -> CodePackage:
    """The packages below a folder, zipped to the same bytes wherever and whenever it is done."""
    missing = [name for name in PACKAGES if not (root / name / "__init__.py").is_file()]
    if missing:
        problem = f"{str(root)[:200]!a} has no {', '.join(missing)}"
        raise InputError([Fault("code", problem, f"Name a checkout, or {IMAGE}.")])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _list_files(root):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _PLAIN_FILE
            archive.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    if len(content) > MAX_PACKAGE_BYTES:
        problem = f"the packages come to {len(content):,} bytes, {MAX_PACKAGE_BYTES:,} are allowed"
        raise InputError([Fault("code", problem, "Take what is no code out of them.")])
    return CodePackage(f"_ray_pkg_{sha256(content).hexdigest()[:32]}.zip", content)


def _list_files(root: Path) -> Iterator[Path]:
    """Every file of the packages that is no leftover, in one order."""
    for name in PACKAGES:
        for path in sorted((root / name).rglob("*")):
            parts = path.relative_to(root).parts
            if any(part.startswith(".") or part == "__pycache__" for part in parts):
                continue
            # Not links: what they point to may be anything on this machine.
            if path.is_file() and not path.is_symlink() and path.suffix != ".pyc":
                yield path
