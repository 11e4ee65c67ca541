"""Send and receive large objects in parts, several at a time, with bounded memory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.utils import ReadFileChunk  # type: ignore[import-untyped]

T = TypeVar("T")
PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 accepts 10,000."""
THREADS = 8
PIECE_BYTES = 1 << 20

OpenPart = Callable[[int, int], AbstractContextManager[Any]]
"""Returns a seekable stream of a range, by its offset and length: a retry reads it again."""


def upload_parts(
    client: Any, address: Mapping[str, str], size: int, open_part: OpenPart, *,
    write: Mapping[str, Any], condition: Mapping[str, str],
) -> str:  # fmt: skip
    """Upload an object in parts and return its etag. Abort on any failure, so no part stays."""
    created = client.create_multipart_upload(**address, ChecksumAlgorithm="CRC32", **write)
    upload = {**address, "UploadId": created["UploadId"]}

    def send(number: int, start: int, length: int) -> dict[str, Any]:
        with open_part(start, length) as body:
            response = client.upload_part(
                **upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"
            )
        part = {"ETag": response["ETag"], "PartNumber": number}
        checksum = response.get("ChecksumCRC32")
        return part | ({"ChecksumCRC32": checksum} if checksum else {})

    try:
        parts = list(_run_in_order(send, _split_parts(size)))
        completed = client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, **condition
        )
    except BaseException:
        # The first failure is raised; a failure of the abort changes nothing for the caller.
        with suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**upload)
        raise
    return str(completed["ETag"])


def download_parts(read_range: Callable[[int, int], Iterator[bytes]], size: int, path: Path) -> str:
    """Write an object of `size` bytes into the new file `path`, several ranges at a time.

    Return the SHA-256 of the file: each part is read back from the page cache while later ones
    arrive.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    digest = hashlib.sha256()
    try:
        os.truncate(descriptor, size)

        def fetch(_: int, start: int, length: int) -> tuple[int, int]:
            position = start
            for piece in read_range(start, length):
                os.pwrite(descriptor, piece, position)
                position += len(piece)
            return start, start + length

        # Closed before the descriptor: a late thread would write into another file of that number.
        with closing(_run_in_order(fetch, _split_parts(size))) as parts:
            for start, end in parts:
                for position in range(start, end, PIECE_BYTES):
                    digest.update(os.pread(descriptor, min(PIECE_BYTES, end - position), position))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def make_file_opener(path: Path) -> OpenPart:
    """Return a function that opens ranges of a file."""
    return lambda start, length: ReadFileChunk.from_filename(str(path), start, length)


def make_bytes_opener(data: bytes) -> OpenPart:
    """Return a function that opens ranges of bytes."""
    return lambda start, length: io.BytesIO(memoryview(data)[start : start + length])


def _split_parts(size: int) -> list[tuple[int, int, int]]:
    length = max(PART_BYTES, -(-size // MAX_PARTS))
    return [
        (number, start, min(length, size - start))
        for number, start in enumerate(range(0, size, length), start=1)
    ]


def _run_in_order(
    task: Callable[[int, int, int], T], parts: list[tuple[int, int, int]]
) -> Generator[T, None, None]:
    """Yield the results in order, each as soon as possible. A failure of any part ends it."""
    pool = ThreadPoolExecutor(max(1, min(THREADS, len(parts))), thread_name_prefix="slora-s3")
    try:
        futures = [pool.submit(task, *part) for part in parts]
        running = set(futures)
        for future in futures:
            while not future.done():
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for result in finished:
                    result.result()
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
