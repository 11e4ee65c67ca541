"""`python -m tests.jobs.llama_cpp.fetch_llama`: llama.cpp's server from a package, into `.cache`.

The package is not installed: it lies in a folder that only the tests' child process imports from.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[3]
PACKAGE, VERSION = "xllamacpp", "2026.10.11549"
HOME = ROOT / ".cache" / "llama_cpp" / VERSION
PATIENCE_S = 300.0


def main() -> int:
    """Fetch once, or say why not: the tests that need it then skip, and say so."""
    if HOME.exists():
        return 0
    print(f"  fetching {PACKAGE} {VERSION} (34 MB)", flush=True)
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=HOME.parent, prefix=".partial-") as name:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        target = ["--no-deps", "--only-binary", ":all:", "--target", f"{name}/made"]
        done = subprocess.run(
            [*pip, *target, f"{PACKAGE}=={VERSION}"], check=False, timeout=PATIENCE_S
        )
        if done.returncode != 0:
            print(f"{PACKAGE} {VERSION} was not fetched.", file=sys.stderr)
            return 0
        Path(name, "made").rename(HOME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
