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

from jobs.errors import (
    AlreadyExists,
    Fault,
    NotInStore,
    StoreError,
    UnsupportedStore,
    WriteConflict,
)
from jobs.store.keys import HIDDEN_PREFIX, Leftover, ObjectInfo, check_key
from jobs.store.probe import find_missing_guarantee
from jobs.store.s3 import s3_leftovers
from jobs.store.s3.body_stream import S3Stream
from jobs.store.s3.boto_client import get_client
from jobs.store.s3.list_keys import list_keys
from jobs.store.s3.multipart import (
    PART_BYTES,
    PIECE_BYTES,
    download_parts,
    make_bytes_opener,
    make_file_opener,
    upload_parts,
)
from jobs.store.s3.translate_errors import (
    ABSENT,
    CONDITION_FAILED,
    CONFLICT,
    get_code,
    translate_errors,
)
from jobs.store.settings import S3Settings, read_store_settings

# The class below has a method called `list`, which hides the builtin in annotations.
Faults = list[Fault]
Leftovers = list[Leftover]

MAX_COPY_BYTES = 5 << 30
"""Above it S3 wants a copy in parts."""
MAX_CONFLICTS = 8
"""Times that a write which met another one on the same key is tried again."""
WRITE_ID = "slora-write"
"""Metadata under which each write has a name of its own."""

_proven_stores = set[str]()


class S3Store:
    """Objects in a bucket, below a prefix. Holds no connection, so it may be pickled and forked."""

    def __init__(self, bucket: str, prefix: str = "", settings: S3Settings | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._settings = settings or read_store_settings().s3
        self._is_probe = False

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write; AlreadyThere or Changed when the condition does not hold. Gives the etag."""
        condition = _make_condition(create_only, if_match)
        self._ensure_proven(condition)
        return self._put_bytes(key, data, condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write what lies at `path`, in parts when it is large."""
        condition = _make_condition(create_only, None)
        self._ensure_proven(condition)
        try:
            size = path.stat().st_size
            if size > PART_BYTES:
                return self._put_parts(key, size, make_file_opener(path), condition)
            return self._put_bytes(key, path.read_bytes(), condition)
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror or error}.") from error

    def copy(self, source: str, key: str) -> None:
        """Write one object under another key too, inside the bucket, or NotFound."""
        info = self.head(source)
        if info is None:
            raise NotInStore(source)
        origin = {"Bucket": self.bucket, "Key": self._add_prefix(source)}
        with translate_errors(self.url(key)):
            if info.size <= MAX_COPY_BYTES:
                self._client.copy_object(**self._locate(key), CopySource=origin, **self._encryption)
            else:
                self._client.copy(origin, **self._locate(key), ExtraArgs=dict(self._encryption))

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        with self.open(key) as stream:
            return stream.read()

    def get_file(self, key: str, path: Path) -> str:
        """Write the whole object into the new file `path`, several parts at a time; its SHA-256."""
        info = self.head(key)
        if info is None:
            raise NotInStore(key)
        match = {"IfMatch": f'"{info.etag}"'}

        def read_range(start: int, length: int) -> Iterator[bytes]:
            with self._require_object(key), self._open_stream(key, match, start, length) as stream:
                yield from stream.iter_pieces(PIECE_BYTES)

        try:
            return download_parts(read_range, info.size, path)
        except OSError as error:
            raise StoreError(f"{path} can't be written: {error.strerror or error}.") from error

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """A part of the object, as much of it as there is, or NotFound."""
        info = self.head(key)
        if info is None:
            raise NotInStore(key)
        # Asked first: a range that begins at the end is an error to S3, and none to a follower.
        end = info.size if length is None else min(info.size, start + length)
        if end <= start:
            return b""
        with self._require_object(key):
            return io.BufferedReader(
                self._open_stream(key, {}, start, end - start), PIECE_BYTES
            ).read()

    def open(self, key: str) -> BinaryIO:
        """The object as a stream that goes on where a connection broke, or NotFound."""
        with self._require_object(key):
            stream = self._open_stream(key, {})
        return cast(BinaryIO, io.BufferedReader(stream, PIECE_BYTES))

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size, etag and age; None where there is none."""
        response = self._fetch_head(key)
        if response is None:
            return None
        return ObjectInfo(
            size=int(response["ContentLength"]),
            etag=_strip_quotes(response["ETag"]),
            modified=response["LastModified"].timestamp(),
        )

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`, in order; never what the store keeps for itself."""
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        with translate_errors(self.url("")):
            start = len(self._add_prefix("x")) - 1
            full_keys = list_keys(self._client, self.bucket, self._add_prefix(prefix))
            keys = [key[start:] for key in full_keys if not key[start:].startswith(HIDDEN_PREFIX)]
        # Not every server lists by bytes as S3 does: some walk folders.
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        """Remove the object; none under the key is no error."""
        with translate_errors(self.url(key)):
            try:
                self._client.delete_object(**self._locate(key))
            except ClientError as error:
                if get_code(error) not in ABSENT:
                    raise

    def list_leftovers(self) -> Leftovers:
        """Unfinished uploads, and objects of probes."""
        with translate_errors(self.url("")):
            return s3_leftovers.list_leftovers(self._client, self.bucket, self._add_prefix(""))

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; one that is gone is no error."""
        with translate_errors(self.url(leftover.name)):
            s3_leftovers.discard_leftover(self._client, self.bucket, self._add_prefix(""), leftover)

    def url(self, key: str) -> str:
        """`s3://`, the bucket and the whole key, of an object or a prefix."""
        full_key = "/".join(part for part in (self.prefix, key) if part)
        return f"s3://{self.bucket}/{full_key}".rstrip("/")

    def check_writable(self) -> Faults:
        """What stands between this process and a commit: the probe, as a fault of the spec."""
        try:
            self._probe_store()
        except StoreError as error:
            if error.exit_code == 3:
                raise
            return [Fault("store", str(error).rstrip("."))]
        return []

    @property
    def _client(self) -> Any:
        return get_client(self._settings)

    @property
    def _encryption(self) -> Mapping[str, str]:
        return self._settings.encryption

    def _add_prefix(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _locate(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._add_prefix(check_key(key))}

    def _put_bytes(self, key: str, data: bytes, condition: Mapping[str, str]) -> str:
        if len(data) > PART_BYTES:
            return self._put_parts(key, len(data), make_bytes_opener(data), condition)

        def send(write_id: dict[str, Any]) -> str:
            response = self._client.put_object(
                **self._locate(key), Body=data, ChecksumAlgorithm="CRC32", **write_id, **condition
            )
            return str(response["ETag"])

        return self._write_object(key, send, condition)

    def _put_parts(self, key: str, size: int, open_part: Any, condition: Mapping[str, str]) -> str:
        def send(write_id: dict[str, Any]) -> str:
            return upload_parts(
                self._client,
                self._locate(key),
                size,
                open_part,
                write=write_id,
                condition=condition,
            )

        return self._write_object(key, send, condition)

    def _write_object(
        self, key: str, send: Callable[[dict[str, Any]], str], condition: Mapping[str, str]
    ) -> str:
        write_id = secrets.token_hex(16)
        with translate_errors(self.url(key)):
            for attempt in range(MAX_CONFLICTS):
                try:
                    return _strip_quotes(
                        send({"Metadata": {WRITE_ID: write_id}, **self._encryption})
                    )
                except ClientError as error:
                    if (etag := self._find_own_write(key, write_id, error)) is not None:
                        return etag
                    if get_code(error) in CONDITION_FAILED or _is_missing_target(error, condition):
                        raise _make_condition_error(key, condition) from error
                    if get_code(error) not in CONFLICT or attempt == MAX_CONFLICTS - 1:
                        raise
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise AssertionError("the last turn returns or raises")

    def _find_own_write(self, key: str, write_id: str, error: ClientError) -> str | None:
        """The etag, where a retry met what its own first try had written."""
        if get_code(error) not in (*CONDITION_FAILED, *CONFLICT, "NoSuchUpload"):
            return None
        response = self._fetch_head(key)
        if response is None or response.get("Metadata", {}).get(WRITE_ID) != write_id:
            return None
        return _strip_quotes(response["ETag"])

    def _fetch_head(self, key: str) -> dict[str, Any] | None:
        with translate_errors(self.url(key)):
            try:
                response: dict[str, Any] = self._client.head_object(**self._locate(key))
            except ClientError as error:
                if get_code(error) in ABSENT:
                    return None
                raise
        return response

    def _open_stream(
        self, key: str, condition: Mapping[str, str], start: int = 0, length: int | None = None
    ) -> S3Stream:
        def fetch(options: Mapping[str, str]) -> dict[str, Any]:
            response: dict[str, Any] = self._client.get_object(
                **self._locate(key), **condition, **options
            )
            return response

        return S3Stream(fetch, self.url(key), start, length)

    @contextmanager
    def _require_object(self, key: str) -> Iterator[None]:
        with translate_errors(self.url(key)):
            try:
                yield
            except ClientError as error:
                if get_code(error) in ABSENT:
                    raise NotInStore(key) from error
                raise

    def _ensure_proven(self, condition: Mapping[str, str]) -> None:
        if condition and not self._is_probe and self.url("") not in _proven_stores:
            self._probe_store()

    def _probe_store(self) -> None:
        probe = S3Store(self.bucket, self._add_prefix(HIDDEN_PREFIX), self._settings)
        probe._is_probe = True
        if (missing := find_missing_guarantee(probe, f"probe-{secrets.token_hex(8)}")) is not None:
            raise UnsupportedStore(self.url(""), missing)
        _proven_stores.add(self.url(""))


def _make_condition(create_only: bool, if_match: str | None) -> dict[str, str]:
    if create_only:
        return {"IfNoneMatch": "*"}
    return {} if if_match is None else {"IfMatch": f'"{if_match}"'}


def _make_condition_error(key: str, condition: Mapping[str, str]) -> StoreError:
    return AlreadyExists(key) if "IfNoneMatch" in condition else WriteConflict(key)


def _is_missing_target(error: ClientError, condition: Mapping[str, str]) -> bool:
    """S3 says "no such key" where If-Match meets nothing."""
    return "IfMatch" in condition and get_code(error) in ABSENT


def _strip_quotes(etag: str) -> str:
    return etag.strip('"')
