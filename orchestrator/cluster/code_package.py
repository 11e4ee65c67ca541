"""Our packages as the working directory of a job: a zip file named by the digest of its content.

Ray keeps such a package in the memory of the head, drops it some minutes after its last use, and
loses it with the head. Every submission therefore checks for it, and uploads it if it is missing.
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
"""Limit of a package. Ours is below a megabyte; Ray accepts half a gigabyte."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16


@dataclass(frozen=True)
class CodePackage:
    """A version of our packages, in the form that Ray expects."""

    name: str
    content: bytes

    @property
    def uri(self) -> str:
        """Return the URI for the runtime environment of a job."""
        return f"gcs://{self.name}"


def make_code_package(location: str) -> CodePackage | None:
    """Return the packages of a checkout, or None if the image contains them. Raise InputError."""
    return None if location == IMAGE else pack_code(Path(location).expanduser())


def pack_code(root: Path) -> CodePackage:
    """Zip the packages below a folder, reproducibly: the same files give the same bytes."""
    missing = [name for name in PACKAGES if not (root / name / "__init__.py").is_file()]
    if missing:
        problem = f"{str(root)[:200]!a} has no {', '.join(missing)}"
        raise InputError([Fault("code", problem, f"Set it to a checkout, or to {IMAGE}.")])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _list_files(root):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _PLAIN_FILE
            archive.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    if len(content) > MAX_PACKAGE_BYTES:
        problem = f"the packages have {len(content):,} bytes; the limit is {MAX_PACKAGE_BYTES:,}"
        raise InputError([Fault("code", problem, "Remove files that are not code.")])
    return CodePackage(f"_ray_pkg_{sha256(content).hexdigest()[:32]}.zip", content)


def _list_files(root: Path) -> Iterator[Path]:
    """Yield the files of the packages in a fixed order, without caches and hidden files."""
    for name in PACKAGES:
        for path in sorted((root / name).rglob("*")):
            parts = path.relative_to(root).parts
            if any(part.startswith(".") or part == "__pycache__" for part in parts):
                continue
            # A link may point to any file of this machine.
            if path.is_file() and not path.is_symlink() and path.suffix != ".pyc":
                yield path
