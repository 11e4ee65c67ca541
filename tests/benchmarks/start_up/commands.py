"""How long the command line takes to answer.

Beside it what Python alone takes, and what the libraries take that no command can do without.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.orchestrator.client.fake_service import make_json, run_script

ROOT = Path(__file__).parents[3]
RUNS = 20
SLORA = str(Path(sys.executable).with_name("slora"))
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "httpx, typer and rich": ([sys.executable, "-c", "import httpx, typer, rich"], None),
    "slora --help": ([SLORA, "--help"], 0.5),
    "slora runs": ([SLORA, "runs"], 0.5),
    "slora plan chat.yaml": ([SLORA, "plan", "jobs/examples/chat.yaml"], 1.0),
    "slora adapters list": ([SLORA, "adapters", "list"], 1.0),
    "slora registry --help": ([SLORA, "registry", "--help"], 1.0),
}
"""The commands, and the most seconds that each may take."""


def measure_commands() -> dict[str, float]:
    """Return the median seconds of each command."""
    # Interleaved, so that a slow moment of the machine hits every command alike.
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    # A service that answers at once: how long a real one takes is measured elsewhere.
    with run_script(make_json({"items": [], "next": None})) as service:
        for _ in range(RUNS):
            for name, (words, _limit) in COMMANDS.items():
                taken[name].append(_measure(words, service.url))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def list_slow_commands(medians: dict[str, float]) -> list[str]:
    """Return the commands above their limits."""
    limits = {name: limit for name, (_, limit) in COMMANDS.items() if limit is not None}
    return [
        f"{name}: {medians[name]:.3f} s (limit {limit:.1f})"
        for name, limit in limits.items()
        if medians[name] > limit
    ]


def show_commands(medians: dict[str, float]) -> None:
    """Print the medians beside the limits."""
    for name, seconds in medians.items():
        limit = COMMANDS[name][1]
        most = "" if limit is None else f", limit {limit:.1f} s"
        print(f"{name:24} {seconds:6.3f} s  (median of {RUNS}{most})")


def _measure(words: list[str], service: str) -> float:
    environment = {**os.environ, "SLORA_SERVICE": service, "SLORA_TOKEN": "slora_none"}
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began
