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
PART = 16 << 20
MOST_PARTS = 9_000
"""S3 takes 10,000."""
THREADS = 8
PIECE = 1 << 20

Opened = Callable[[int, int], io.BufferedIOBase]
"""Gives a stream of the bytes from an offset, so many of them."""


def upload_parts(
    client: Any, where: Mapping[str, str], size: int, opened: Opened, *,
    write: Mapping[str, Any], condition: Mapping[str, str],
) -> str:  # fmt: skip
    """Send an object in parts and give its etag; aborted on any failure, so no part is paid for."""
    made = client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32", **write)
    upload = {**where, "UploadId": made["UploadId"]}

    def send(number: int, start: int, length: int) -> dict[str, Any]:
        with opened(start, length) as body:
            answer = client.upload_part(
                **upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"
            )
        kept = {"ETag": answer["ETag"], "PartNumber": number}
        return kept | ({"ChecksumCRC32": c} if (c := answer.get("ChecksumCRC32")) else {})

    try:
        parts = list(_in_order(send, list(_cut(size))))
        done = client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, **condition
        )
    except BaseException:
        # What failed is told; that the abort failed too changes nothing for the caller.
        with suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**upload)
        raise
    return str(done["ETag"])


def download_parts(read: Callable[[int, int], Iterator[bytes]], size: int, path: Path) -> str:
    """Write an object of `size` bytes into the new file `path`, several ranges at a time.

    Gives the SHA-256 of what lies there then: each part is read back, from the page cache, while
    later ones arrive.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    digest = hashlib.sha256()
    try:
        os.truncate(descriptor, size)

        def fetch(_: int, start: int, length: int) -> tuple[int, int]:
            at = start
            for piece in read(start, length):
                os.pwrite(descriptor, piece, at)
                at += len(piece)
            return start, start + length

        # Closed before the descriptor is: a thread that still wrote would meet another file there.
        with closing(_in_order(fetch, list(_cut(size)))) as parts:
            for start, end in parts:
                for at in range(start, end, PIECE):
                    digest.update(os.pread(descriptor, min(PIECE, end - at), at))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def of_file(path: Path) -> Opened:
    """Streams of a file's parts."""

    def opened(start: int, length: int) -> io.BufferedIOBase:
        return io.BufferedReader(_Part(path, start, length), PIECE)

    return opened


def of_bytes(data: bytes) -> Opened:
    """Streams of parts of what is in memory already."""
    return lambda start, length: io.BytesIO(memoryview(data)[start : start + length])


class _Part(io.RawIOBase):
    """A part of a file as a stream that can be read again, as a retry does."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = path.open("rb"), start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._length - self._at))
        found = os.preadv(
            self._file.fileno(), [memoryview(buffer)[:wanted]], self._start + self._at
        )
        self._at += found
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


def _cut(size: int) -> Iterator[tuple[int, int, int]]:
    length = max(PART, -(-size // MOST_PARTS))
    for number, start in enumerate(range(0, size, length), start=1):
        yield number, start, min(length, size - start)


@contextmanager
def _pool(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(max(1, min(THREADS, count)), thread_name_prefix="slora-s3")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    work: Callable[[int, int, int], T], cuts: list[tuple[int, int, int]]
) -> Generator[T, None, None]:
    """The results, each as soon as it and all before it are there; a failure ends all at once."""
    with _pool(len(cuts)) as pool:
        futures = [pool.submit(work, *cut) for cut in cuts]
        running = set(futures)
        for future in futures:
            while not future.done():
                done, running = wait(running, return_when="FIRST_COMPLETED")
                for one in done:
                    one.result()
            yield future.result()
