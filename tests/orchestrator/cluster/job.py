"""A job for these tests: `python -m tests.orchestrator.cluster.job` leaves a mark and waits."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def main() -> int:
    """Return the exit code of the option."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--marks", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--code", type=int, default=0)
    options = parser.parse_args()
    with options.marks.open("a") as marks:
        marks.write("started\n")
    print("the job says ä", flush=True)
    time.sleep(options.seconds)
    return int(options.code)


if __name__ == "__main__":
    sys.exit(main())
