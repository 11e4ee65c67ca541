"""Listing a bucket: one request where a page is enough, several folders at once where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

THREADS = 12
MOST_FOLDERS = 256
"""Above it, and with a single one, pages are asked for one after the other."""


def keys_under(client: Any, bucket: str, prefix: str) -> list[str]:
    """Every whole key that starts with `prefix`, in no order."""
    asked = {"Bucket": bucket, "Prefix": prefix}
    first = client.list_objects_v2(**asked)
    if not first.get("IsTruncated"):
        return _keys(first)
    # A page waits for the one before it, folders don't: so the longest folder counts alone.
    level = client.list_objects_v2(**asked, Delimiter="/")
    folders = [entry["Prefix"] for entry in level.get("CommonPrefixes", ())]
    if level.get("IsTruncated") or not 1 < len(folders) <= MOST_FOLDERS:
        return _keys(first) + list(_rest(client, asked, first["NextContinuationToken"]))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="slora-s3-list") as pool:
        found = pool.map(lambda folder: keys_under(client, bucket, folder), folders)
        return _keys(level) + [key for keys in found for key in keys]


def _rest(client: Any, asked: Mapping[str, str], token: str) -> Iterator[str]:
    while True:
        page = client.list_objects_v2(**asked, ContinuationToken=token)
        yield from _keys(page)
        if not page.get("IsTruncated"):
            return
        token = page["NextContinuationToken"]


def _keys(page: Mapping[str, Any]) -> list[str]:
    return [entry["Key"] for entry in page.get("Contents", ())]
