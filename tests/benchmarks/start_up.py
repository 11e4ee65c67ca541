"""`python -m tests.benchmarks.start_up [--json]`: how long the command line takes to answer."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = 7
LIMIT_S = 1.0
"""What the command line promises."""
COMMANDS = {
    "slora --help": ["--help"],
    "slora plan chat.yaml": ["plan", "jobs/examples/chat.yaml"],
    "slora adapters list": ["adapters", "list"],
    "slora registry --help": ["registry", "--help"],
}


def main() -> int:
    """Exit code 1 where a median is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    # Interleaved, so that a slow moment of the machine hits every command alike.
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, words in COMMANDS.items():
            taken[name].append(_seconds(words))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    if asked.json:
        print(json.dumps(medians))
    else:
        for name, seconds in medians.items():
            print(f"{name:24} {seconds:6.3f} s  (median of {RUNS}, limit {LIMIT_S:.1f} s)")
    return int(max(medians.values()) > LIMIT_S)


def _seconds(words: list[str]) -> float:
    began = time.perf_counter()
    command = [str(Path(sys.executable).with_name("slora")), *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
