"""Large objects in parts, several at a time: bounded memory, and nothing left behind on failure."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

T = TypeVar("T")
PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 takes 10,000."""
THREADS = 8
PIECE_BYTES = 1 << 20

OpenPart = Callable[[int, int], io.BufferedIOBase]
"""Gives a stream of the bytes from an offset, so many of them."""


def upload_parts(
    client: Any, address: Mapping[str, str], size: int, open_part: OpenPart, *,
    write: Mapping[str, Any], condition: Mapping[str, str],
) -> str:  # fmt: skip
    """Send an object in parts and give its etag; aborted on any failure, so no part is paid for."""
    created = client.create_multipart_upload(**address, ChecksumAlgorithm="CRC32", **write)
    upload = {**address, "UploadId": created["UploadId"]}

    def send(number: int, start: int, length: int) -> dict[str, Any]:
        with open_part(start, length) as body:
            response = client.upload_part(
                **upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"
            )
        part = {"ETag": response["ETag"], "PartNumber": number}
        return part | (
            {"ChecksumCRC32": checksum} if (checksum := response.get("ChecksumCRC32")) else {}
        )

    try:
        parts = list(_run_in_order(send, list(_iterate_parts(size))))
        completed = client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, **condition
        )
    except BaseException:
        # What failed is told; that the abort failed too changes nothing for the caller.
        with suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**upload)
        raise
    return str(completed["ETag"])


def download_parts(read_range: Callable[[int, int], Iterator[bytes]], size: int, path: Path) -> str:
    """Write an object of `size` bytes into the new file `path`, several ranges at a time.

    Gives the SHA-256 of what lies there then: each part is read back, from the page cache, while
    later ones arrive.
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

        # Closed before the descriptor is: a thread that still wrote would meet another file there.
        with closing(_run_in_order(fetch, list(_iterate_parts(size)))) as parts:
            for start, end in parts:
                for position in range(start, end, PIECE_BYTES):
                    digest.update(os.pread(descriptor, min(PIECE_BYTES, end - position), position))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def make_file_opener(path: Path) -> OpenPart:
    """Streams of a file's parts."""

    def open_part(start: int, length: int) -> io.BufferedIOBase:
        return io.BufferedReader(_FilePart(path, start, length), PIECE_BYTES)

    return open_part


def make_bytes_opener(data: bytes) -> OpenPart:
    """Streams of parts of what is in memory already."""
    return lambda start, length: io.BytesIO(memoryview(data)[start : start + length])


class _FilePart(io.RawIOBase):
    """A part of a file as a stream that can be read again, as a retry does."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = path.open("rb"), start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(0, self._length - self._position))
        count_read = os.preadv(
            self._file.fileno(), [memoryview(buffer)[:count]], self._start + self._position
        )
        self._position += count_read
        return count_read

    def close(self) -> None:
        self._file.close()
        super().close()


def _iterate_parts(size: int) -> Iterator[tuple[int, int, int]]:
    length = max(PART_BYTES, -(-size // MAX_PARTS))
    for number, start in enumerate(range(0, size, length), start=1):
        yield number, start, min(length, size - start)


@contextmanager
def _start_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(max(1, min(THREADS, count)), thread_name_prefix="slora-s3")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _run_in_order(
    task: Callable[[int, int, int], T], parts: list[tuple[int, int, int]]
) -> Generator[T, None, None]:
    """The results, each as soon as it and all before it are there; a failure ends all at once."""
    with _start_pool(len(parts)) as pool:
        futures = [pool.submit(task, *part) for part in parts]
        running = set(futures)
        for future in futures:
            while not future.done():
                done, running = wait(running, return_when="FIRST_COMPLETED")
                for finished in done:
                    finished.result()
            yield future.result()
