"""The process that inspects models, seen from the one that asks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ASK = """
from pathlib import Path
from jobs.errors import JobsError
from jobs.inspect.inspection_client import inspect_model
try:
    inspect_model("describe", Path("model"), task="causal-lm")
except JobsError as error:
    print(error)
"""


def test_a_process_that_cannot_start_is_reported_with_its_reason(tmp_path: Path):
    (tmp_path / "transformers.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "failed: ImportError: libgomp.so.1 is missing" in asked.stdout
