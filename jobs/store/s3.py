"""A store in an S3 bucket, on any endpoint: what boto3 does well is left to it.

Three things it leaves to us. A conditional write whose answer was lost is tried again by boto3 and
then meets its own object: every write carries a name of its own, by which it knows itself. A body
that ends early is asked for again from there on. And a server may ignore conditions altogether:
the first conditional write of a process tries that out before anything depends on it.
"""

from __future__ import annotations

import io
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from jobs.errors import AlreadyThere, Changed, Fault, NotFound, StoreError, UnsoundStore
from jobs.store import s3_leftovers
from jobs.store.keys import HIDDEN, Head, Leftover, check_key
from jobs.store.probe import lacks
from jobs.store.s3_client import client_of
from jobs.store.s3_errors import ABSENT, BUSY, FAILED, code_of, told
from jobs.store.s3_list import keys_under
from jobs.store.s3_parts import PART, PIECE, download_parts, of_bytes, of_file, upload_parts
from jobs.store.s3_stream import S3Stream
from jobs.store.settings import S3Settings, store_settings

# The class below has a method called `list`, which hides the builtin in annotations.
Faults = list[Fault]
Leftovers = list[Leftover]

LARGEST_COPY = 5 << 30
"""Above it S3 wants a copy in parts."""
CONFLICTS = 8
"""Times that a write which met another one on the same key is tried again."""
WRITE = "slora-write"
"""Metadata under which each write has a name of its own."""

_sound = set[str]()


class S3Store:
    """Objects in a bucket, below a prefix. Holds no connection, so it may be pickled and forked."""

    def __init__(self, bucket: str, prefix: str = "", settings: S3Settings | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._settings = settings or store_settings().s3
        self._proving = False

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write; AlreadyThere or Changed when the condition does not hold. Gives the etag."""
        condition = _condition(create_only, if_match)
        self._prove(condition)
        return self._put(key, data, condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write what lies at `path`, in parts when it is large."""
        condition = _condition(create_only, None)
        self._prove(condition)
        try:
            size = path.stat().st_size
            if size > PART:
                return self._put_parts(key, size, of_file(path), condition)
            return self._put(key, path.read_bytes(), condition)
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror or error}.") from error

    def copy(self, source: str, key: str) -> None:
        """Write one object under another key too, inside the bucket, or NotFound."""
        there = self.head(source)
        if there is None:
            raise NotFound(source)
        origin = {"Bucket": self.bucket, "Key": self._full(source)}
        with told(self.url(key)):
            if there.size <= LARGEST_COPY:
                self._client.copy_object(**self._at(key), CopySource=origin, **self._extra)
            else:
                self._client.copy(origin, **self._at(key), ExtraArgs=dict(self._extra))

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        with self.open(key) as stream:
            return stream.read()

    def get_file(self, key: str, path: Path) -> str:
        """Write the whole object into the new file `path`, several parts at a time; its SHA-256."""
        there = self.head(key)
        if there is None:
            raise NotFound(key)
        match = {"IfMatch": f'"{there.etag}"'}

        def read(start: int, length: int) -> Iterator[bytes]:
            with self._found(key), self._stream(key, match, start, length) as stream:
                yield from stream.pieces(PIECE)

        try:
            return download_parts(read, there.size, path)
        except OSError as error:
            raise StoreError(f"{path} can't be written: {error.strerror or error}.") from error

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """A part of the object, as much of it as there is, or NotFound."""
        there = self.head(key)
        if there is None:
            raise NotFound(key)
        # Asked first: a range that begins at the end is an error to S3, and none to a follower.
        end = there.size if length is None else min(there.size, start + length)
        if end <= start:
            return b""
        with self._found(key):
            return io.BufferedReader(self._stream(key, {}, start, end - start), PIECE).read()

    def open(self, key: str) -> BinaryIO:
        """The object as a stream that goes on where a connection broke, or NotFound."""
        with self._found(key):
            stream = self._stream(key, {})
        return cast(BinaryIO, io.BufferedReader(stream, PIECE))

    def head(self, key: str) -> Head | None:
        """The object's size, etag and age; None where there is none."""
        found = self._look(key)
        if found is None:
            return None
        return Head(
            size=int(found["ContentLength"]),
            etag=_plain(found["ETag"]),
            modified=found["LastModified"].timestamp(),
        )

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`, in order; never what the store keeps for itself."""
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        with told(self.url("")):
            start = len(self._full("x")) - 1
            whole = keys_under(self._client, self.bucket, self._full(prefix))
            keys = [key[start:] for key in whole if not key[start:].startswith(HIDDEN)]
        # Not every server lists by bytes as S3 does: some walk folders.
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        """Remove the object; none under the key is no error."""
        with told(self.url(key)):
            try:
                self._client.delete_object(**self._at(key))
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise

    def leftovers(self) -> Leftovers:
        """Unfinished uploads, and objects of probes."""
        with told(self.url("")):
            return s3_leftovers.leftovers(self._client, self.bucket, self._full(""))

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; one that is gone is no error."""
        with told(self.url(leftover.name)):
            s3_leftovers.discard(self._client, self.bucket, self._full(""), leftover)

    def url(self, key: str) -> str:
        """`s3://`, the bucket and the whole key, of an object or a prefix."""
        whole = "/".join(part for part in (self.prefix, key) if part)
        return f"s3://{self.bucket}/{whole}".rstrip("/")

    def check_writable(self) -> Faults:
        """What stands between this process and a commit: the probe, as a fault of the spec."""
        try:
            self._probe()
        except StoreError as error:
            if error.exit_code == 3:
                raise
            return [Fault("store", str(error).rstrip("."))]
        return []

    @property
    def _client(self) -> Any:
        return client_of(self._settings)

    @property
    def _extra(self) -> Mapping[str, str]:
        return self._settings.encryption

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._full(check_key(key))}

    def _put(self, key: str, data: bytes, condition: Mapping[str, str]) -> str:
        if len(data) > PART:
            return self._put_parts(key, len(data), of_bytes(data), condition)

        def send(name: dict[str, Any]) -> str:
            answer = self._client.put_object(
                **self._at(key), Body=data, ChecksumAlgorithm="CRC32", **name, **condition
            )
            return str(answer["ETag"])

        return self._written(key, send, condition)

    def _put_parts(self, key: str, size: int, opened: Any, condition: Mapping[str, str]) -> str:
        def send(name: dict[str, Any]) -> str:
            return upload_parts(
                self._client, self._at(key), size, opened, write=name, condition=condition
            )

        return self._written(key, send, condition)

    def _written(
        self, key: str, send: Callable[[dict[str, Any]], str], condition: Mapping[str, str]
    ) -> str:
        name = secrets.token_hex(16)
        with told(self.url(key)):
            for turn in range(CONFLICTS):
                try:
                    return _plain(send({"Metadata": {WRITE: name}, **self._extra}))
                except ClientError as error:
                    if (ours := self._our_own(key, name, error)) is not None:
                        return ours
                    if code_of(error) in FAILED or _gone(error, condition):
                        raise _failed(key, condition) from error
                    if code_of(error) not in BUSY or turn == CONFLICTS - 1:
                        raise
                time.sleep(random.uniform(0, 0.05 * 2**turn))
        raise AssertionError("the last turn returns or raises")

    def _our_own(self, key: str, name: str, error: ClientError) -> str | None:
        """The etag, where a retry met what its own first try had written."""
        if code_of(error) not in (*FAILED, *BUSY, "NoSuchUpload"):
            return None
        there = self._look(key)
        if there is None or there.get("Metadata", {}).get(WRITE) != name:
            return None
        return _plain(there["ETag"])

    def _look(self, key: str) -> dict[str, Any] | None:
        with told(self.url(key)):
            try:
                found: dict[str, Any] = self._client.head_object(**self._at(key))
            except ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise
        return found

    def _stream(
        self, key: str, condition: Mapping[str, str], start: int = 0, length: int | None = None
    ) -> S3Stream:
        def ask(more: Mapping[str, str]) -> dict[str, Any]:
            found: dict[str, Any] = self._client.get_object(**self._at(key), **condition, **more)
            return found

        return S3Stream(ask, self.url(key), start, length)

    @contextmanager
    def _found(self, key: str) -> Iterator[None]:
        with told(self.url(key)):
            try:
                yield
            except ClientError as error:
                if code_of(error) in ABSENT:
                    raise NotFound(key) from error
                raise

    def _prove(self, condition: Mapping[str, str]) -> None:
        if condition and not self._proving and self.url("") not in _sound:
            self._probe()

    def _probe(self) -> None:
        hidden = S3Store(self.bucket, self._full(HIDDEN), self._settings)
        hidden._proving = True
        if (lack := lacks(hidden, f"probe-{secrets.token_hex(8)}")) is not None:
            raise UnsoundStore(self.url(""), lack)
        _sound.add(self.url(""))


def _condition(create_only: bool, if_match: str | None) -> dict[str, str]:
    if create_only:
        return {"IfNoneMatch": "*"}
    return {} if if_match is None else {"IfMatch": f'"{if_match}"'}


def _failed(key: str, condition: Mapping[str, str]) -> StoreError:
    return AlreadyThere(key) if "IfNoneMatch" in condition else Changed(key)


def _gone(error: ClientError, condition: Mapping[str, str]) -> bool:
    """S3 says "no such key" where If-Match meets nothing."""
    return "IfMatch" in condition and code_of(error) in ABSENT


def _plain(etag: str) -> str:
    return etag.strip('"')
