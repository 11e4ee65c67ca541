"""One transfer in a process of its own, for store_speed: prints seconds and the peak of memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from jobs.store.digest import sha256_of_file
from jobs.store.s3 import S3Store

# What was fastest for boto3 on this server: 8 to 16 parts at once, of 16 MiB.
BEST = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=10
)


def main() -> None:
    if len(sys.argv) == 1:
        return  # `make bench` runs every file here; this one is run by store_speed
    way, path, bucket, turn = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    plain = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    store = S3Store(bucket, "speed")
    store.check_writable()
    got = path.with_name("got")
    got.unlink(missing_ok=True)
    work: dict[str, Callable[[], object]] = {
        "boto3 up": lambda: plain.upload_file(str(path), bucket, f"speed/b{turn}", Config=BEST),
        "ours up": lambda: store.put_file(f"o{turn}", path, create_only=True),
        "boto3 down": lambda: plain.download_file(bucket, f"speed/b{turn}", str(got), Config=BEST),
        "ours down": lambda: store.get_file(f"o{turn}", got),
        "ours down, digested": lambda: (store.get_file(f"o{turn}", got), sha256_of_file(got)),
    }
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work[way]()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": after.ru_maxrss / 1000}))


if __name__ == "__main__":
    main()
