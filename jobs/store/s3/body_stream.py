"""Read the body of an object as a stream that resumes where a connection broke."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.errors import StoreUnreachable
from jobs.store.s3.translate_errors import STREAM_ERRORS, translate_errors

MAX_TRIES = 5
"""Breaks in a row without a byte received, after which the stream fails."""

Fetch = Callable[[Mapping[str, str]], dict[str, Any]]
"""Requests the object with a Range and conditions; returns the response of boto3."""


class S3Stream(io.RawIOBase):
    """A readable stream. Sends the first request at once, so an absent object fails on open."""

    def __init__(self, fetch: Fetch, url: str, start: int = 0, length: int | None = None) -> None:
        self._fetch, self._url, self._position = fetch, url, start
        options = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        response = fetch(options)
        self._body: Any = response["Body"]
        self._end = start + int(response["ContentLength"])
        # The rest must come from the same object.
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
        """Yield the rest in pieces of at most `size` bytes, without the copies of `read`."""
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
        raise StoreUnreachable(
            f"{self._url}: the body broke off {MAX_TRIES} times. Try again later."
        )

    def _read_end(self) -> bytes:
        """Read once beyond the end: there boto3 compares the checksum of a complete object."""
        if self._body is not None:
            self._body.read(1)
        return b""
