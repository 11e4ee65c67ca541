"""One transfer in a process of its own, for store_speed: prints seconds and the peak of memory."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from jobs.store.adapters.operations import commit, pull, resolve_adapter
from jobs.store.s3.s3_store import S3Store
from tests.jobs.store.builders import make_draft

# What was fastest for boto3 on this server: 8 to 16 parts at once, of 16 MiB.
BEST = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=10
)


def main() -> None:
    if len(sys.argv) == 1:
        return  # `make bench` runs every file here; this one is run by store_speed
    way, folder, bucket, turn = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    work = _work(way, folder, bucket, turn)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": after.ru_maxrss / 1000}))


def _work(way: str, folder: Path, bucket: str, turn: str) -> Callable[[], object]:
    """What is to be timed, with its client made, its store probed and its target out of the way."""
    path, got = folder / "adapter_model.safetensors", folder.with_name("got")
    plain = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    plain.head_bucket(Bucket=bucket)
    store = S3Store(bucket, "speed")
    store.check_writable()
    if way.startswith("boto3"):
        got.unlink(missing_ok=True)
    else:
        shutil.rmtree(got.with_name("pulled"), ignore_errors=True)
    key = f"plain/{turn}"
    ways: dict[str, Callable[[], object]] = {
        "boto3 up": lambda: plain.upload_file(str(path), bucket, key, Config=BEST),
        "put": lambda: store.put_file(f"put/{turn}", path, create_only=True),
        "boto3 down": lambda: plain.download_file(bucket, key, str(got), Config=BEST),
        "pull": lambda: pull(store, resolve_adapter(store, "speed"), got.with_name("pulled")),
        "commit": lambda: commit(store, folder, make_draft(name="speed", run=f"run-{turn}")),
    }
    return ways[way]


if __name__ == "__main__":
    main()
