"""An object store in an S3 bucket, on any endpoint.

It adds three things to boto3. boto3 retries a conditional write whose response was lost, and the
retry meets its own object: each write carries an id, by which it is recognised. The body of an
object that breaks off is requested again from there on. And a server may ignore conditions: the
first conditional write of a process probes the store before anything depends on it.
"""

from __future__ import annotations

import io
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from jobs.errors import AlreadyExists, NotInStore, StoreError, UnsupportedStore, WriteConflict
from jobs.store.base import Leftover, Leftovers, ObjectInfo
from jobs.store.keys import HIDDEN_PREFIX, check_key
from jobs.store.probe import find_missing_guarantee
from jobs.store.s3 import s3_leftovers
from jobs.store.s3.body_stream import S3Stream
from jobs.store.s3.boto_client import get_client
from jobs.store.s3.list_keys import list_keys
from jobs.store.s3.multipart import (
    PART_BYTES,
    PIECE_BYTES,
    OpenPart,
    download_parts,
    make_bytes_opener,
    make_file_opener,
    upload_parts,
)
from jobs.store.s3.translate_errors import (
    ABSENT,
    CONDITION_FAILED,
    CONFLICT,
    DENIED,
    get_code,
    translate_errors,
)
from jobs.store.settings import S3Settings, read_store_settings

MAX_COPY_BYTES = 5 << 30
"""S3 requires a copy in parts above this size."""
MAX_CONFLICTS = 8
"""Attempts of a write that meets concurrent writes of the same key."""
WRITE_ID = "slora-write"
"""The metadata with the id of each write."""

_proven_stores = set[str]()
"""URLs of the stores that this process has probed successfully."""


class S3Store:
    """Objects in a bucket, below a prefix. Holds no connection, so it can be pickled and forked."""

    def __init__(self, bucket: str, prefix: str = "", settings: S3Settings | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._settings = settings or read_store_settings().s3
        self._is_probe = False

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object. Raise AlreadyExists or WriteConflict if the condition fails."""
        condition = _make_condition(create_only, if_match)
        self._ensure_proven(condition)
        return self._put_bytes(key, data, condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write the file at `path`, in parts if it is large."""
        condition = _make_condition(create_only, None)
        self._ensure_proven(condition)
        try:
            size = path.stat().st_size
            if size > PART_BYTES:
                return self._put_parts(key, size, make_file_opener(path), condition)
            return self._put_bytes(key, path.read_bytes(), condition)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside the bucket. Raise NotInStore if it is absent."""
        info = self._require_info(source)
        origin = {"Bucket": self.bucket, "Key": self._add_prefix(source)}
        with translate_errors(self.url(key)):
            if info.size <= MAX_COPY_BYTES:
                self._client.copy_object(**self._locate(key), CopySource=origin, **self._encryption)
            else:
                self._client.copy(origin, **self._locate(key), ExtraArgs=self._encryption)

    def get(self, key: str) -> bytes:
        """Return the bytes of an object. Raise NotInStore if it is absent."""
        with self.open(key) as stream:
            return stream.read()

    def get_file(self, key: str, path: Path) -> str:
        """Write an object into the new file `path`, in parallel, and return its SHA-256."""
        info = self._require_info(key)
        match = {"IfMatch": f'"{info.etag}"'}

        def read_range(start: int, length: int) -> Iterator[bytes]:
            with self._require_object(key), self._open_stream(key, match, start, length) as stream:
                yield from stream.iter_pieces(PIECE_BYTES)

        try:
            return download_parts(read_range, info.size, path)
        except OSError as error:
            reason = error.strerror or error
            remedy = "Free some space there, or use another folder."
            raise StoreError(f"{path} cannot be written: {reason}. {remedy}") from error

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """Return a range of an object, cut at its end. Raise NotInStore if it is absent."""
        info = self._require_info(key)
        # The size first: to S3 a range that starts at the end is an error, to a follower it is not.
        end = info.size if length is None else min(info.size, start + length)
        if end <= start:
            return b""
        with self._require_object(key):
            stream = self._open_stream(key, {}, start, end - start)
            return io.BufferedReader(stream, PIECE_BYTES).read()

    def open(self, key: str) -> BinaryIO:
        """Open an object as a stream that resumes. Raise NotInStore if it is absent."""
        with self._require_object(key):
            stream = self._open_stream(key, {})
        return cast(BinaryIO, io.BufferedReader(stream, PIECE_BYTES))

    def head(self, key: str) -> ObjectInfo | None:
        """Return size, etag and time of an object, or None if it is absent."""
        response = self._fetch_head(key)
        if response is None:
            return None
        return ObjectInfo(
            size=int(response["ContentLength"]),
            etag=_strip_quotes(response["ETag"]),
            modified=response["LastModified"].timestamp(),
        )

    def measure_age(self, key: str) -> float | None:
        """Return the seconds since an object was written, by the server's clock."""
        response = self._fetch_head(key)
        if response is None:
            return None
        written_at: float = response["LastModified"].timestamp()
        return max(0.0, _read_server_time(response) - written_at)

    def list(self, prefix: str) -> Iterator[str]:
        """Return all keys that start with `prefix`, in order, without those of probes."""
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        with translate_errors(self.url("")):
            start = len(self._add_prefix("x")) - 1
            full_keys = list_keys(self._client, self.bucket, self._add_prefix(prefix))
            keys = [key[start:] for key in full_keys if not key[start:].startswith(HIDDEN_PREFIX)]
        # Sorted here: not every server lists in the order of bytes as S3 does.
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        """Delete an object. An absent object is no error."""
        with translate_errors(self.url(key)):
            try:
                self._client.delete_object(**self._locate(key))
            except ClientError as error:
                if get_code(error) not in ABSENT:
                    raise

    def list_leftovers(self) -> Leftovers:
        """Return unfinished uploads and objects of probes."""
        with translate_errors(self.url("")):
            return s3_leftovers.list_leftovers(self._client, self.bucket, self._add_prefix(""))

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover. An absent one is no error."""
        with translate_errors(self.url(leftover.name)):
            s3_leftovers.discard_leftover(self._client, self.bucket, self._add_prefix(""), leftover)

    def url(self, key: str) -> str:
        """Return `s3://`, the bucket and the full key."""
        full_key = "/".join(part for part in (self.prefix, key) if part)
        return f"s3://{self.bucket}/{full_key}".rstrip("/")

    def local_path(self, key: str) -> None:
        """Return None: a bucket has no paths."""

    def check_writable(self) -> str | None:
        """Probe the store. Return why a commit would fail, or None."""
        try:
            self._probe_store()
        except StoreError as error:
            if error.exit_code == 3:
                raise
            return str(error).rstrip(".")
        return None

    @property
    def _client(self) -> Any:
        return get_client(self._settings)

    @property
    def _encryption(self) -> dict[str, str]:
        return dict(self._settings.encryption)

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

    def _put_parts(
        self, key: str, size: int, open_part: OpenPart, condition: Mapping[str, str]
    ) -> str:
        def send(write_id: dict[str, Any]) -> str:
            address = self._locate(key)
            return upload_parts(
                self._client, address, size, open_part, write=write_id, condition=condition
            )

        return self._write_object(key, send, condition)

    def _write_object(
        self, key: str, send: Callable[[dict[str, Any]], str], condition: Mapping[str, str]
    ) -> str:
        write_id = secrets.token_hex(16)
        with translate_errors(self.url(key)):
            for attempt in range(MAX_CONFLICTS):
                try:
                    etag = send({"Metadata": {WRITE_ID: write_id}, **self._encryption})
                    return _strip_quotes(etag)
                except ClientError as error:
                    if (own_etag := self._find_own_write(key, write_id, error)) is not None:
                        return own_etag
                    if get_code(error) in CONDITION_FAILED or _is_missing_target(error, condition):
                        raise _make_condition_error(key, condition) from error
                    if get_code(error) not in CONFLICT or attempt == MAX_CONFLICTS - 1:
                        raise
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    def _find_own_write(self, key: str, write_id: str, error: ClientError) -> str | None:
        """Return the etag if a retry met the object that its own first attempt wrote."""
        if get_code(error) not in (*CONDITION_FAILED, *CONFLICT, "NoSuchUpload"):
            return None
        response = self._fetch_head(key)
        if response is None or response.get("Metadata", {}).get(WRITE_ID) != write_id:
            return None
        return _strip_quotes(response["ETag"])

    def _require_info(self, key: str) -> ObjectInfo:
        if (info := self.head(key)) is None:
            raise NotInStore(key)
        return info

    def _fetch_head(self, key: str) -> dict[str, Any] | None:
        with translate_errors(self.url(key)):
            try:
                response: dict[str, Any] = self._client.head_object(**self._locate(key))
            except ClientError as error:
                if self._is_absent(key, error):
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
                if self._is_absent(key, error):
                    raise NotInStore(key) from error
                raise

    def _is_absent(self, key: str, error: ClientError) -> bool:
        """Return whether the response says that the object is absent.

        S3 says so only to those who may list the whole bucket. Others are denied, and the listing
        of this one key, which they may read, tells an absent object from a forbidden one.
        """
        if get_code(error) in ABSENT:
            return True
        if get_code(error) not in DENIED:
            return False
        full_key = self._add_prefix(key)
        try:
            listing = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full_key, MaxKeys=1)
        except ClientError:
            return False
        return all(entry["Key"] != full_key for entry in listing.get("Contents", ()))

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
    """Return whether If-Match met no object, which S3 reports as "no such key"."""
    return "IfMatch" in condition and get_code(error) in ABSENT


def _read_server_time(response: Mapping[str, Any]) -> float:
    """Return the time of a response by the server's clock, or by ours if it does not tell."""
    try:
        date = response["ResponseMetadata"]["HTTPHeaders"]["date"]
        return parsedate_to_datetime(date).timestamp()
    except (KeyError, TypeError, ValueError):
        return time.time()


def _strip_quotes(etag: str) -> str:
    return etag.strip('"')
