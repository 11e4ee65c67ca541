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
MOST_FOLDERS = 256
"""As many are asked for one by one, which is how many blobs have. More are asked for together."""
KEYS = "SloraKeys"
"""Where a page has its keys, still encoded, after `read_keys_alone`."""

_KEY = re.compile(rb"<Key>([^<]+)</Key>")


def read_keys_alone(client: Any) -> None:
    """Let this client read nothing of a listed object but its key, which is all that we want.

    boto3's own reading of sizes, times and etags took 20 ms a page, more than the server's part.
    """
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_keys)


def keys_under(client: Any, bucket: str, prefix: str) -> set[str]:
    """Every whole key that starts with `prefix`."""
    asked = {"Bucket": bucket, "Prefix": prefix}
    first = client.list_objects_v2(**asked)
    if not first.get("IsTruncated"):
        return set(_keys(first))
    # A page waits for the one before it, other prefixes don't.
    level = list(_pages(client, {**asked, "Delimiter": "/"}))
    folders = [entry["Prefix"] for page in level for entry in page.get("CommonPrefixes", ())]
    if len(folders) < 2:
        return _whole([first, *_pages(client, asked, first["NextContinuationToken"])])

    def below(part: tuple[str, int]) -> set[str]:
        head, count = part
        if count == 1:
            return keys_under(client, bucket, head)
        return _whole(_pages(client, {**asked, "Prefix": head}))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="slora-s3-list") as pool:
        return _whole(level).union(*pool.map(below, _parts(folders, len(prefix))))


def _parts(folders: Sequence[str], length: int) -> list[tuple[str, int]]:
    """Prefixes that cover the folders, each with how many: one, or a few pages of them."""
    if len(folders) <= MOST_FOLDERS:
        return [(folder, 1) for folder in folders]
    parts = list[tuple[str, int]]()
    for head, group in groupby(sorted(folders), lambda folder: folder[: length + 1]):
        alike = list(group)
        if len(alike) > MOST_FOLDERS:
            parts += _parts(alike, length + 1)
        else:
            # A lone folder by its whole name: it may hold any number of objects.
            parts.append((alike[0] if len(alike) == 1 else head, len(alike)))
    return parts


def _pages(client: Any, asked: Mapping[str, str], token: str | None = None) -> Iterator[Any]:
    while True:
        more = {} if token is None else {"ContinuationToken": token}
        page = client.list_objects_v2(**asked, **more)
        yield page
        if not page.get("IsTruncated"):
            return
        token = page["NextContinuationToken"]


def _whole(pages: Iterable[Mapping[str, Any]]) -> set[str]:
    return {key for page in pages for key in _keys(page)}


def _keys(page: Mapping[str, Any]) -> list[str]:
    # boto3 asks for encoded keys by itself; where a server does not encode, it says so.
    encoded = page.get("EncodingType") == "url"
    taken = [unquote_plus(key) if encoded else key for key in page.get(KEYS, ())]
    return taken + [entry["Key"] for entry in page.get("Contents", ())]


def _take_keys(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    if response_dict["status_code"] != 200:
        return
    before, *entries = response_dict["body"].split(b"<Contents>")
    kept, keys = [before], list[str]()
    for entry in entries:
        inside, end, after = entry.partition(b"</Contents>")
        found = _KEY.search(inside)
        if not end or not found:
            return  # cut short, or not as S3 writes it: boto3 reads it, or says what is wrong
        kept.append(after)
        keys.append(unescape(found[1].decode()))
    customized_response_dict[KEYS] = keys
    response_dict["body"] = b"".join(kept)
