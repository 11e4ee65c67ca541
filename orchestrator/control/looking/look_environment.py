"""The environment of a child that looks at files, as far as it is the same for every project."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]


def make_process_environment() -> Mapping[str, str]:
    """Return where programs and this code lie, and what keeps the process small."""
    path = os.pathsep.join(dict.fromkeys((str(ROOT), *filter(None, sys.path))))
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
