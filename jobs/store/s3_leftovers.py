"""What writers who died have left in a bucket: uploads that nobody ends, and objects of probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from jobs.store.keys import HIDDEN, Leftover
from jobs.store.s3_errors import ABSENT, code_of

GONE = (*ABSENT, "NoSuchUpload")


def leftovers(client: Any, bucket: str, prefix: str) -> list[Leftover]:
    """All below `prefix`, those of writers who still live too: their times tell."""
    found = [*_uploads(client, bucket, prefix), *_probes(client, bucket, prefix)]
    return sorted(found, key=lambda leftover: leftover.name)


def discard(client: Any, bucket: str, prefix: str, leftover: Leftover) -> None:
    """Abort an upload, or remove a probe's object; what is gone meanwhile is no error."""
    where = {"Bucket": bucket, "Key": prefix + leftover.name}
    try:
        if leftover.upload is not None:
            client.abort_multipart_upload(**where, UploadId=leftover.upload)
        else:
            client.delete_object(**where)
    except ClientError as error:
        if code_of(error) not in GONE:
            raise


def _uploads(client: Any, bucket: str, prefix: str) -> Iterator[Leftover]:
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for upload in page.get("Uploads", ()):
            # A server may not heed the prefix, and what is not below it is not ours.
            if upload["Key"].startswith(prefix):
                yield _upload(client, bucket, prefix, upload)


def _upload(client: Any, bucket: str, prefix: str, upload: Any) -> Leftover:
    where = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    parts = list[Any]()
    try:
        for page in client.get_paginator("list_parts").paginate(**where):
            parts += page.get("Parts", ())
    except ClientError as error:
        if code_of(error) not in GONE:  # it was ended meanwhile
            raise
    # By its youngest part: a large upload over a slow line lives for long.
    moments = [upload["Initiated"], *(part["LastModified"] for part in parts)]
    return Leftover(
        name=upload["Key"].removeprefix(prefix),
        size=sum(int(part["Size"]) for part in parts),
        modified=max(moment.timestamp() for moment in moments),
        upload=upload["UploadId"],
    )


def _probes(client: Any, bucket: str, prefix: str) -> Iterator[Leftover]:
    # Under the older name of the call, because the newer one is read for its keys alone.
    pages = client.get_paginator("list_objects").paginate(Bucket=bucket, Prefix=prefix + HIDDEN)
    for page in pages:
        for entry in page.get("Contents", ()):
            yield Leftover(
                name=entry["Key"].removeprefix(prefix),
                size=int(entry["Size"]),
                modified=entry["LastModified"].timestamp(),
            )
