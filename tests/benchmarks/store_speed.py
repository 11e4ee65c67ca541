"""How fast the store is beside plain boto3 on the same server, and what it needs of memory.

    python -m tests.benchmarks.store_speed [--mib 1024] [--rounds 3] [--versions 10000]

Each transfer runs in a process of its own; plain boto3 and ours take turns. SeaweedFS is started
for it on this machine, so both share its processors with the server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.store.directory import DirectoryStore
from jobs.store.objects import ObjectStore, open_store
from jobs.store.versions import all_versions
from tests.storage.weed import BUCKET, Weed

CHILD = "tests.benchmarks.store_transfer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--versions", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slora-store-speed-") as made:
        folder = Path(made)
        server = Weed(folder / "weed")
        server.start()
        os.environ.update(server.environment)
        try:
            transfers(folder, asked.mib, asked.rounds)
            listings(folder, asked.versions)
        finally:
            server.kill()


def transfers(folder: Path, mib: int, rounds: int) -> None:
    path = folder / "adapter"
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    took: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        for way in ("boto3 up", "ours up", "boto3 down", "ours down", "ours down, digested"):
            took.setdefault(way, []).append(_child(way, path, turn))
    print(f"{mib} MiB, median of {rounds} (MiB/s; MB at most resident)")
    speed = {way: statistics.median(mib / run["seconds"] for run in runs) for way, runs in
             took.items()}  # fmt: skip
    for way, runs in took.items():
        most = max(run["mb"] for run in runs)
        plain = speed["boto3 up" if way.endswith("up") else "boto3 down"]
        cpu = statistics.median(run["cpu"] for run in runs)
        share = f"{speed[way] / plain:6.0%} of boto3"
        print(f"  {way:22s} {speed[way]:7.0f}  {share}  {cpu:6.2f} s of CPU  {most:5.0f} MB")


def _child(way: str, path: Path, turn: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", CHILD, way, str(path), BUCKET, str(turn)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout)
    return told


def listings(folder: Path, versions: int) -> None:
    directory = DirectoryStore(folder / "many")
    _fill_directory(directory, versions)
    bucket = open_store(f"s3://{BUCKET}/many")
    _fill_bucket(bucket, versions)
    for name, store in (("directory", directory), ("s3", bucket)):
        began = time.perf_counter()
        found = len(all_versions(store))
        print(f"  list {found} versions, {name}: {time.perf_counter() - began:.2f} s")
        assert found == versions


def _keys(number: int) -> list[str]:
    prefix = f"adapters/name-{number % 10}/v{number // 10 + 1}/"
    names = (".claim", "adapter_config.json", "adapter_model.safetensors", "manifest.json")
    return [prefix + name for name in names]


def _fill_directory(store: DirectoryStore, versions: int) -> None:
    # Past the store's own door, whose every write is forced to the disk: 40,000 would take minutes.
    for number in range(versions):
        for key in _keys(number):
            path = store.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}")


def _fill_bucket(store: ObjectStore, versions: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def put(key: Any) -> None:
        store.put(key, b"{}")

    keys = [key for number in range(versions) for key in _keys(number)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, keys))


if __name__ == "__main__":
    main()
