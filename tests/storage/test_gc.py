"""Debris of dead writers in a bucket: old unfinished uploads and probes are removed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from jobs.store.adapters.operations import collect_garbage, commit, scan_adapters, verify_adapter
from jobs.store.adapters.removal import GRACE_S
from jobs.store.s3.multipart import PART_BYTES
from jobs.store.s3.s3_store import S3Store
from tests.jobs.store.builders import _run_in_environment, make_adapter_folder, make_draft
from tests.storage.fault_proxy import FaultProxy
from tests.storage.weed import Weed

LATER = GRACE_S + 3600
PIECE = 5 << 20


def start_upload(store: S3Store, key: str) -> None:
    """Start an upload of one part and never finish it, under a full key of the bucket."""
    client = store._client
    address = {"Bucket": store.bucket, "Key": key}
    created = client.create_multipart_upload(**address)
    client.upload_part(**address, UploadId=created["UploadId"], PartNumber=1, Body=bytes(PIECE))


def list_unfinished(store: S3Store) -> list[str]:
    """Return the keys of all unfinished uploads whose keys start with the prefix of the store."""
    pages = store._client.get_paginator("list_multipart_uploads").paginate(Bucket=store.bucket)
    uploads = (upload["Key"] for page in pages for upload in page.get("Uploads", ()))
    return sorted(key for key in uploads if key.startswith(store.prefix))


def test_gc_aborts_old_uploads_but_none_of_other_programs(s3: S3Store, tmp_path: Path):
    manifest = commit(s3, make_adapter_folder(tmp_path / "exported"), make_draft())
    start_upload(s3, f"{s3.prefix}/blobs/sha256/ab/c")
    start_upload(s3, f"{s3.prefix}2/blobs/sha256/ab/c")
    s3._client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/.tmp/probe-1", Body=b"probe")
    before = list(s3.list(""))
    both = [f"{s3.prefix}/blobs/sha256/ab/c", f"{s3.prefix}2/blobs/sha256/ab/c"]
    assert collect_garbage(s3).leftovers == ()
    would = collect_garbage(s3, dry_run=True, now=time.time() + LATER)
    assert would.leftovers == (".tmp/probe-1", "blobs/sha256/ab/c")
    assert would.bytes == PIECE + 5
    assert list_unfinished(s3) == both
    assert collect_garbage(s3, now=time.time() + LATER) == would
    assert list_unfinished(s3) == both[1:]
    assert s3.list_leftovers() == []
    assert list(s3.list("")) == before
    assert scan_adapters(s3)[0] == [manifest] and verify_adapter(s3, manifest) == []
    other = S3Store(s3.bucket, f"{s3.prefix}2")
    [leftover] = other.list_leftovers()
    other.discard(leftover)
    other.discard(leftover)
    assert list_unfinished(s3) == []


def _put(store: S3Store, path: Path) -> None:
    store.put_file("big", path)


def test_the_parts_of_a_writer_killed_inside_an_upload_are_freed(
    s3: S3Store, weed: Weed, tmp_path: Path
):
    (tmp_path / "big").write_bytes(bytes(PART_BYTES * 2))
    proxy = FaultProxy(weed.port)
    environment = {**os.environ, "AWS_ENDPOINT_URL_S3": proxy.url}
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_run_in_environment, args=(environment, _put, s3, tmp_path / "big")
    )
    proxy.kill_client("do after", 3, lambda: process.pid or 0)  # after one part at the least
    process.start()
    process.join()
    proxy.close()
    assert process.exitcode == -signal.SIGKILL
    assert list_unfinished(s3) == [f"{s3.prefix}/big"]
    assert collect_garbage(s3, now=time.time() + LATER).bytes >= PART_BYTES
    assert list_unfinished(s3) == [] and list(s3.list("")) == []
