"""Find and remove the debris of dead writers in a bucket: unfinished uploads and probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from jobs.store.base import Leftover
from jobs.store.keys import HIDDEN_PREFIX
from jobs.store.s3.translate_errors import ABSENT, get_code

UPLOAD_ABSENT = (*ABSENT, "NoSuchUpload")


def list_leftovers(client: Any, bucket: str, prefix: str) -> list[Leftover]:
    """Return all leftovers, and the unfinished writes of living writers: their times differ."""
    entries = [*_list_uploads(client, bucket, prefix), *_list_probes(client, bucket, prefix)]
    return sorted(entries, key=lambda leftover: leftover.name)


def discard_leftover(client: Any, bucket: str, prefix: str, leftover: Leftover) -> None:
    """Abort an upload, or delete the object of a probe. An absent one is no error."""
    address = {"Bucket": bucket, "Key": prefix + leftover.name}
    try:
        if leftover.upload_id is not None:
            client.abort_multipart_upload(**address, UploadId=leftover.upload_id)
        else:
            client.delete_object(**address)
    except ClientError as error:
        if get_code(error) not in UPLOAD_ABSENT:
            raise


def _list_uploads(client: Any, bucket: str, prefix: str) -> Iterator[Leftover]:
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for upload in page.get("Uploads", ()):
            # Some servers ignore the prefix, and uploads outside it belong to others.
            if upload["Key"].startswith(prefix):
                yield _describe_upload(client, bucket, prefix, upload)


def _describe_upload(client: Any, bucket: str, prefix: str, upload: Any) -> Leftover:
    address = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    parts = list[Any]()
    try:
        for page in client.get_paginator("list_parts").paginate(**address):
            parts += page.get("Parts", ())
    except ClientError as error:
        if get_code(error) not in UPLOAD_ABSENT:  # it ended meanwhile
            raise
    # The time of its newest part: a large upload over a slow line takes long.
    times = [upload["Initiated"], *(part["LastModified"] for part in parts)]
    return Leftover(
        name=upload["Key"].removeprefix(prefix),
        size=sum(int(part["Size"]) for part in parts),
        modified=max(time.timestamp() for time in times),
        upload_id=upload["UploadId"],
    )


def _list_probes(client: Any, bucket: str, prefix: str) -> Iterator[Leftover]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix + HIDDEN_PREFIX
    )
    for page in pages:
        for entry in page.get("Contents", ()):
            yield Leftover(
                name=entry["Key"].removeprefix(prefix),
                size=int(entry["Size"]),
                modified=entry["LastModified"].timestamp(),
            )
