"""A job for these tests: `python -m tests.orchestrator.cluster.job` leaves a mark and waits."""

from __future__ import annotations

import argparse
import os
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
    if variable := os.environ.get("SLORA_TEST_VARIABLE"):
        print(f"the driver has {variable}, its task {read_in_task()}", flush=True)
    print("the job says ä", flush=True)
    time.sleep(options.seconds)
    return int(options.code)


def read_in_task() -> str:
    """Return the variable as a task of this job has it."""
    import ray

    ray.init(log_to_driver=False)

    @ray.remote  # type: ignore[untyped-decorator]
    def read_variable() -> str:
        return os.environ["SLORA_TEST_VARIABLE"]

    return str(ray.get(read_variable.remote()))


if __name__ == "__main__":
    sys.exit(main())
