"""The body of an object as a stream: where a connection breaks, it goes on from there."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.errors import StoreUnreachable
from jobs.store.s3.translate_errors import STREAM_ERRORS, translate_errors

MAX_TRIES = 5
"""Times in a row that a body may break without a byte having come."""

Fetch = Callable[[Mapping[str, str]], dict[str, Any]]
"""Asks for the object, with a Range and conditions; gives boto3's answer."""


class S3Stream(io.RawIOBase):
    """Asks at once, so that what is not there is told when it is opened."""

    def __init__(self, fetch: Fetch, url: str, start: int = 0, length: int | None = None) -> None:
        self._fetch, self._url, self._position = fetch, url, start
        options = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        response = fetch(options)
        self._body: Any = response["Body"]
        self._end = start + int(response["ContentLength"])
        # Of another object the rest would fit nothing.
        self._same_object = {"IfMatch": response["ETag"]}

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._end - self._position)
        with translate_errors(self._url):
            data = self._read_some(count) if count else self._read_end()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def iter_pieces(self, size: int) -> Iterator[bytes]:
        """The rest, in pieces of at most `size`, without the copies that `read` makes."""
        while remaining := self._end - self._position:
            data = self._read_some(min(size, remaining))
            self._position += len(data)
            yield data
        self._read_end()

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        super().close()

    def _read_some(self, count: int) -> bytes:
        for attempt in range(MAX_TRIES):
            try:
                if self._body is None:
                    rest = {"Range": f"bytes={self._position}-{self._end - 1}"}
                    self._body = self._fetch({**rest, **self._same_object})["Body"]
                if data := bytes(self._body.read(count)):
                    return data
            except STREAM_ERRORS:
                if attempt == MAX_TRIES - 1:
                    raise
            if self._body is not None:
                self._body.close()
            self._body = None
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise StoreUnreachable(f"{self._url}: the store cuts it short again and again. Try later.")

    def _read_end(self) -> bytes:
        """One read beyond the end: there boto3 compares the checksum of a whole object."""
        if self._body is not None:
            self._body.read(1)
        return b""
