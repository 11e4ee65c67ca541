"""Translate the errors of boto3 into StoreErrors that say who has to act and quote nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSOError,
)
from urllib3.exceptions import HTTPError

from jobs.errors import StoreError, StoreRefused, StoreUnreachable
from jobs.store.s3.environment import describe_endpoint

ABSENT = ("404", "NoSuchKey", "NotFound")
CONDITION_FAILED = ("412", "PreconditionFailed")
CONFLICT = ("409", "ConditionalRequestConflict")
REFUSED = ("401", "403", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed",
           "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
           "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired")  # fmt: skip
DENIED = ("403", "AccessDenied")
RETRIABLE = ("429", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException",
           "TooManyRequestsException", "ServiceUnavailable", "InternalError")  # fmt: skip
FULL = ("507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull")
CORRUPT = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, SSOError)
STREAM_ERRORS = (HTTPError, HTTPClientError, IncompleteReadError, ResponseStreamingError, OSError)
"""Errors of a body that ends early. A stream answers each by requesting the rest."""
NETWORK_ERRORS = (ConnectionError, TimeoutError, HTTPError, HTTPClientError, BotoCoreError)


def get_code(error: ClientError) -> str:
    """Return the code of the error, or its HTTP status if it has no code, as for HEAD."""
    response: dict[str, Any] = error.response
    return str(response.get("Error", {}).get("Code") or get_status(error))


def get_status(error: ClientError) -> int:
    """Return the HTTP status, or 0 if the response has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Raise a StoreError for an error of boto3 inside the block. Messages hold only its code.

    The text of a server may quote the key id or the request, so it is dropped.
    """
    try:
        yield
    except ClientError as error:
        raise _translate_response(url, error) from error
    except NO_CREDENTIALS as error:
        raise StoreRefused(
            f"{url}: no usable credentials ({type(error).__name__}). Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role."
        ) from error
    except FlexibleChecksumError as error:
        raise StoreError(
            f"{url}: the checksum of the received bytes is wrong. Try again; if the error "
            "persists, the object is corrupt."
        ) from error
    except (*STREAM_ERRORS, BotoCoreError) as error:
        # Some errors of boto3 are OSErrors too; other OSErrors come from local files.
        if isinstance(error, OSError) and not isinstance(error, NETWORK_ERRORS):
            raise
        raise StoreUnreachable(
            f"{url}: the store is unreachable ({type(error).__name__}). {describe_endpoint()}. "
            "Check that, the proxy if there is one, and the network."
        ) from error


def _translate_response(url: str, error: ClientError) -> StoreError:
    code, status = get_code(error), get_status(error)
    label = code if code.isalnum() and len(code) < 60 else str(status)
    if code == "NoSuchBucket":
        return StoreRefused(f"{url}: the bucket does not exist. Create it, or use another one.")
    if code in FULL or status == 507:
        return StoreError(f"{url}: the store is full ({label}). Free some space and try again.")
    if code in REFUSED or status in (401, 403):
        return StoreRefused(
            f"{url}: access denied ({label}). Check the credentials, their expiry and their "
            "permissions."
        )
    if code in RETRIABLE or status >= 500 or status == 429:
        return StoreUnreachable(f"{url}: the store is unavailable ({label}). Try again later.")
    if code in CONDITION_FAILED:
        return StoreError(f"{url}: the object was replaced during the read. Try again.")
    if code in CORRUPT:
        return StoreError(f"{url}: the bytes changed in transit ({label}). Try again.")
    return StoreError(f"{url}: unexpected error {label} ({status}). See the log of the server.")
