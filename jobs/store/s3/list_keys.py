"""Listing a bucket: one request where a page is enough, several at once where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import groupby
from typing import Any
from urllib.parse import unquote_plus

THREADS = 12
MAX_FOLDERS = 256
"""As many are asked for one by one, which is how many blobs have. More are asked for together."""
KEYS = "SloraKeys"
"""Where a page has its keys, still encoded, after `read_keys_alone`."""

_KEY = re.compile(rb"<Key>([^<]+)</Key>")


def read_keys_alone(client: Any) -> None:
    """Let this client read nothing of a listed object but its key, which is all that we want.

    boto3's own reading of sizes, times and etags took 20 ms a page, more than the server's part.
    """
    client.meta.events.register("before-parse.s3.ListObjectsV2", _extract_keys)


def list_keys(client: Any, bucket: str, prefix: str) -> set[str]:
    """Every whole key that starts with `prefix`."""
    request = {"Bucket": bucket, "Prefix": prefix}
    first = client.list_objects_v2(**request)
    if not first.get("IsTruncated"):
        return set(_read_keys(first))
    # A page waits for the one before it, other prefixes don't.
    level = list(_iterate_pages(client, {**request, "Delimiter": "/"}))
    folders = [entry["Prefix"] for page in level for entry in page.get("CommonPrefixes", ())]
    if len(folders) < 2:
        return _collect_keys(
            [first, *_iterate_pages(client, request, first["NextContinuationToken"])]
        )

    def list_below(group: tuple[str, int]) -> set[str]:
        group_prefix, count = group
        if count == 1:
            return list_keys(client, bucket, group_prefix)
        return _collect_keys(_iterate_pages(client, {**request, "Prefix": group_prefix}))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="slora-s3-list") as pool:
        return _collect_keys(level).union(
            *pool.map(list_below, _group_folders(folders, len(prefix)))
        )


def _group_folders(folders: Sequence[str], length: int) -> list[tuple[str, int]]:
    """Prefixes that cover the folders, each with how many: one, or a few pages of them."""
    if len(folders) <= MAX_FOLDERS:
        return [(folder, 1) for folder in folders]
    groups = list[tuple[str, int]]()
    for start, group in groupby(sorted(folders), lambda folder: folder[: length + 1]):
        members = list(group)
        if len(members) > MAX_FOLDERS:
            groups += _group_folders(members, length + 1)
        else:
            # A lone folder by its whole name: it may hold any number of objects.
            groups.append((members[0] if len(members) == 1 else start, len(members)))
    return groups


def _iterate_pages(
    client: Any, request: Mapping[str, str], token: str | None = None
) -> Iterator[Any]:
    while True:
        options = {} if token is None else {"ContinuationToken": token}
        page = client.list_objects_v2(**request, **options)
        yield page
        if not page.get("IsTruncated"):
            return
        token = page["NextContinuationToken"]


def _collect_keys(pages: Iterable[Mapping[str, Any]]) -> set[str]:
    return {key for page in pages for key in _read_keys(page)}


def _read_keys(page: Mapping[str, Any]) -> list[str]:
    # boto3 asks for encoded keys by itself; where a server does not encode, it says so.
    encoded = page.get("EncodingType") == "url"
    keys = [unquote_plus(key) if encoded else key for key in page.get(KEYS, ())]
    return keys + [entry["Key"] for entry in page.get("Contents", ())]


def _extract_keys(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    if response_dict["status_code"] != 200:
        return
    before, *entries = response_dict["body"].split(b"<Contents>")
    rest, keys = [before], list[str]()
    for entry in entries:
        inside, end, after = entry.partition(b"</Contents>")
        match = _KEY.search(inside)
        if not end or not match:
            return  # cut short, or not as S3 writes it: boto3 reads it, or says what is wrong
        rest.append(after)
        keys.append(unescape(match[1].decode()))
    customized_response_dict[KEYS] = keys
    response_dict["body"] = b"".join(rest)
