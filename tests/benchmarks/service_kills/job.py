"""The job of the kill tests: it waits briefly and commits a small adapter by the real protocol.

It leaves a mark on this machine's disk ten times a second, in a file of its own: so it is known
afterwards which attempts lived, and when.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

from jobs.errors import JobsError
from jobs.spec.run_arguments import LEAVE_POINTER, SUBMITTED
from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore
from tests.jobs.store.builders import make_adapter_folder, make_draft

MARKS = "SLORA_KILLS_MARKS"
BEAT_S = 0.1
LONGEST_S = 2.0


def main() -> int:
    """Return the exit code of a real job: 3 if the store does not answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument(LEAVE_POINTER, action="store_true")
    parser.add_argument(SUBMITTED, type=float)
    options = parser.parse_args()
    _start_marking(Path(os.environ[MARKS]) / f"{options.run}.a{options.attempt}.{os.getpid()}")
    try:
        _work(options.spec, options.run, options.attempt)
    except JobsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _start_marking(file: Path) -> None:
    def write_marks() -> None:
        with file.open("w", buffering=1) as marks:
            while True:
                marks.write(f"{time.time()}\n")
                time.sleep(BEAT_S)

    threading.Thread(target=write_marks, daemon=True).start()


def _work(spec_path: str, run: str, attempt: int) -> None:
    store = open_store(spec_path.split("/runs/")[0])
    name = yaml.safe_load(RunStore(store, run).read_text(SPEC))["name"]
    time.sleep(random.Random(run).uniform(0, LONGEST_S))
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_adapter_folder(Path(scratch) / "adapter", run)
        commit(store, folder, make_draft(name=name, run=run, attempt=attempt))


if __name__ == "__main__":
    sys.exit(main())
