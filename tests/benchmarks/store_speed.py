"""How fast the store is beside plain boto3 on the same server, and what it needs of memory.

    python -m tests.benchmarks.store_speed [--mib 1024] [--rounds 5] [--versions 10000]

Each transfer runs in a process of its own; plain boto3 and ours take turns. SeaweedFS is started
for it on this machine, so both share its processors with the server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.store.adapters.versions import list_all_versions
from jobs.store.base import ObjectStore
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from tests.storage.weed import BUCKET, Weed

CHILD = "tests.benchmarks.store_transfer"
WAYS = {
    "boto3 up": ("boto3 up", ""),
    "put": ("boto3 up", "our upload"),
    "commit": ("boto3 up", "checks, upload, copy inside the store, and all of it read back"),
    "boto3 down": ("boto3 down", ""),
    "pull": ("boto3 down", "as `slora adapters pull` does it: every byte digested"),
}
"""Each beside what it is measured by, in the order in which they take turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--versions", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slora-store-speed-") as made:
        folder = Path(made)
        server = Weed(folder / "weed")
        server.start()
        os.environ.update(server.environment)
        try:
            if asked.rounds:
                transfers(folder, asked.mib, asked.rounds)
            if asked.versions:
                listings(folder, asked.versions)
        finally:
            server.kill()


def transfers(folder: Path, mib: int, rounds: int) -> None:
    adapter = _adapter(folder / "adapter", mib)
    took: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        _renew(adapter, turn)
        for way in WAYS:
            os.sync()  # what the one before left to be written is not this one's affair
            took.setdefault(way, []).append(_child(way, adapter, turn))
            print(f"  {turn + 1}: {way:10s} {took[way][-1]['seconds']:.2f} s", flush=True)
    print(f"{mib} MiB, median of {rounds} (MiB/s; MB at most resident)")
    speed = {way: statistics.median(mib / run["seconds"] for run in took[way]) for way in WAYS}
    for way, (plain, means) in WAYS.items():
        most = max(run["mb"] for run in took[way])
        cpu = statistics.median(run["cpu"] for run in took[way])
        share = f"{speed[way] / speed[plain]:6.0%} of {plain}"
        each = " ".join(f"{run['seconds']:.2f}" for run in took[way])
        print(f"  {way:10s} {speed[way]:5.0f}  {share:22s} {cpu:5.2f} s of CPU  {most:4.0f} MB  "
              f"[{each} s]  {means}")  # fmt: skip


def _adapter(folder: Path, mib: int) -> Path:
    """A folder as a commit wants it: one tensor of finite numbers, a MiB repeated."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    entry = {"dtype": "F32", "shape": [mib << 18], "data_offsets": [0, mib << 20]}
    header = json.dumps({"lora_A.weight": entry}).encode()
    # The highest byte of each float is made small, so that none is infinite.
    piece = bytearray(os.urandom(1 << 20))
    piece[3::4] = bytes(1 << 18)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(mib):
            file.write(piece)
    return folder


def _renew(folder: Path, turn: int) -> None:
    """Other bytes each time: a blob that is there already would not be sent again."""
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", turn))


def _child(way: str, adapter: Path, turn: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", CHILD, way, str(adapter), BUCKET, str(turn)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout)
    return told


def listings(folder: Path, versions: int) -> None:
    directory = DirectoryStore(folder / "many")
    _fill_directory(directory, versions)
    bucket = open_store(f"s3://{BUCKET}/many")
    _fill_bucket(bucket, versions)
    os.sync()
    for name, store in (("directory", directory), ("s3", bucket)):
        each = list[str]()
        for _ in range(5):
            began = time.perf_counter()
            assert len(list_all_versions(store)) == versions
            each.append(f"{time.perf_counter() - began:.2f}")
        print(f"  list {versions} versions, {name}: {' '.join(each)} s")


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
