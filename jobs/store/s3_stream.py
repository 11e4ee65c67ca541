"""The body of an object as a stream: where a connection breaks, it goes on from there."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.errors import StoreUnreachable
from jobs.store.s3_errors import STREAM, told

TRIES = 5
"""Times in a row that a body may break without a byte having come."""

Ask = Callable[[Mapping[str, str]], dict[str, Any]]
"""Asks for the object, with a Range and conditions; gives boto3's answer."""


class S3Stream(io.RawIOBase):
    """Asks at once, so that what is not there is told when it is opened."""

    def __init__(self, ask: Ask, url: str, start: int = 0, length: int | None = None) -> None:
        self._ask, self._url, self._at = ask, url, start
        wanted = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        answer = ask(wanted)
        self._body: Any = answer["Body"]
        self._end = start + int(answer["ContentLength"])
        # Of another object the rest would fit nothing.
        self._same = {"IfMatch": answer["ETag"]}

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._end - self._at)
        with told(self._url):
            found = self._read(wanted) if wanted else self._last()
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def pieces(self, size: int) -> Iterator[bytes]:
        """The rest, in pieces of at most `size`, without the copies that `read` makes."""
        while left := self._end - self._at:
            found = self._read(min(size, left))
            self._at += len(found)
            yield found
        self._last()

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        super().close()

    def _read(self, wanted: int) -> bytes:
        for turn in range(TRIES):
            try:
                if self._body is None:
                    rest = {"Range": f"bytes={self._at}-{self._end - 1}"}
                    self._body = self._ask({**rest, **self._same})["Body"]
                if found := bytes(self._body.read(wanted)):
                    return found
            except STREAM:
                if turn == TRIES - 1:
                    raise
            if self._body is not None:
                self._body.close()
            self._body = None
            time.sleep(random.uniform(0, 0.1 * 2**turn))
        raise StoreUnreachable(f"{self._url}: the store cuts it short again and again. Try later.")

    def _last(self) -> bytes:
        """One read beyond the end: there boto3 compares the checksum of a whole object."""
        if self._body is not None:
            self._body.read(1)
        return b""
