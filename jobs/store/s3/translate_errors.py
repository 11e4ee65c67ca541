"""What boto3 says, in our words: who has to act, and never what was sent along."""

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

ABSENT = ("404", "NoSuchKey", "NotFound")
CONDITION_FAILED = ("412", "PreconditionFailed")
CONFLICT = ("409", "ConditionalRequestConflict")
REFUSED = ("401", "403", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed",
           "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
           "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired")  # fmt: skip
RETRIABLE = ("429", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException",
           "TooManyRequestsException", "ServiceUnavailable", "InternalError")  # fmt: skip
FULL = ("507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull")
CORRUPT = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, SSOError)
STREAM_ERRORS = (HTTPError, HTTPClientError, IncompleteReadError, ResponseStreamingError, OSError)
"""How a body ends early; each of them is answered by asking for the rest."""
NETWORK_ERRORS = (ConnectionError, TimeoutError, HTTPError, HTTPClientError, BotoCoreError)


def get_code(error: ClientError) -> str:
    """The error's code; the HTTP status where there is none, as for HEAD."""
    response: dict[str, Any] = error.response
    return str(response.get("Error", {}).get("Code") or get_status(error))


def get_status(error: ClientError) -> int:
    """The HTTP status, 0 where the answer had none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Inside, an error of boto3 becomes a StoreError. Messages name codes, never what they quote.

    A server's own words may quote the key id or the request, so they stay behind.
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
            f"{url}: the bytes that came are not those of their checksum. Try again; if it "
            "stays so, the object is damaged."
        ) from error
    except (*STREAM_ERRORS, BotoCoreError) as error:
        # Some of boto3's are OSErrors as well; what is left are those of files, which are not ours.
        if isinstance(error, OSError) and not isinstance(error, NETWORK_ERRORS):
            raise
        raise StoreUnreachable(
            f"{url}: the store does not answer ({type(error).__name__}). Check the endpoint and "
            "the network."
        ) from error


def _translate_response(url: str, error: ClientError) -> StoreError:
    code, status = get_code(error), get_status(error)
    label = code if code.isalnum() and len(code) < 60 else str(status)
    if code == "NoSuchBucket":
        return StoreRefused(f"{url}: there is no such bucket. Make it first, or name another.")
    if code in FULL or status == 507:
        return StoreError(f"{url}: the store is full ({label}). Free some space, then retry.")
    if code in REFUSED or status in (401, 403):
        return StoreRefused(
            f"{url}: the store refuses this ({label}). Check the credentials, their expiry and "
            "what they allow."
        )
    if code in RETRIABLE or status >= 500 or status == 429:
        return StoreUnreachable(f"{url}: the store can't now ({label}). Try again later.")
    if code in CONDITION_FAILED:
        return StoreError(f"{url}: it was replaced while it was read. Read it again.")
    if code in CORRUPT:
        return StoreError(f"{url}: the bytes changed on their way ({label}). Try again.")
    return StoreError(f"{url}: the store answers {label} ({status}). See its own log.")
