"""Errors of boto3 become StoreErrors that say who has to act and quote nothing."""

from __future__ import annotations

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
)
from urllib3.exceptions import ProtocolError

from jobs.errors import StoreError, StoreRefused, StoreUnreachable
from jobs.store.s3.translate_errors import translate_errors

URL = "http://key:s3cr3t@host"


def answered(code: str, status: int) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": "s3cr3t"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("InternalError", 500), StoreUnreachable),
        (answered("SlowDown", 503), StoreUnreachable),
        (answered("TooManyRequests", 429), StoreUnreachable),
        (answered("AccessDenied", 403), StoreRefused),
        (answered("ExpiredToken", 400), StoreRefused),
        (answered("SignatureDoesNotMatch", 403), StoreRefused),
        (answered("NoSuchBucket", 404), StoreRefused),
        (answered("BadDigest", 400), StoreError),
        (answered("InsufficientStorage", 507), StoreError),
        (answered("\x1b[2J s3cr3t", 400), StoreError),
        (ReadTimeoutError(endpoint_url=URL), StoreUnreachable),
        (ConnectTimeoutError(endpoint_url=URL), StoreUnreachable),
        (EndpointConnectionError(endpoint_url=URL, error="x"), StoreUnreachable),
        (ConnectionClosedError(endpoint_url=URL), StoreUnreachable),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnreachable),
        (ProtocolError("broken"), StoreUnreachable),
        (ConnectionResetError(), StoreUnreachable),
        (NoCredentialsError(), StoreRefused),
        (FlexibleChecksumError(error_msg="x"), StoreError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_says_who_has_to_act_and_quotes_nothing(error: Exception, kind: type[StoreError]):
    with pytest.raises(StoreError) as caught, translate_errors("s3://bucket/key"):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith("s3://bucket/key: ")
    assert "s3cr3t" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_error_of_a_local_file_is_not_translated():
    with pytest.raises(FileNotFoundError), translate_errors("s3://bucket/key"):
        raise FileNotFoundError("mine")
