"""Tokens by which a running job asks the service for its project's credentials, and nothing else.

A token is a code of the run and its attempt under a key that only the services have, so it is
neither stored nor in the database. It is worth something only while that attempt is active.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from jobs.errors import StoreUnreachable
from jobs.network import is_loopback
from jobs.spec.strict_model import StrictModel
from orchestrator.control.projects.private_file import read_secret

MIN_KEY_CHARS = 32
PREFIX = "slora-run"


def _check_key_file(name: str) -> str:
    if len(read_secret(name)) < MIN_KEY_CHARS:
        raise ValueError(f"{name} has fewer than {MIN_KEY_CHARS} characters")
    return name


class JobsConfig(StrictModel):
    """How jobs reach the service to renew their credentials."""

    url: str = Field(pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(?:/[A-Za-z0-9._/-]*)?$")
    """URL of the service as the nodes reach it."""
    key_file: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_check_key_file)]
    """File with a random text of 32 characters or more, equal for all services of a database."""

    @model_validator(mode="after")
    def _check_encryption(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme != "https" and not is_loopback(parts.hostname):
            raise ValueError("url is not https://, so credentials would be unencrypted")
        return self


def make_run_token(jobs: JobsConfig, run: str, attempt: int) -> str:
    """Return the token of an attempt of a run. Raise StoreUnreachable if the key can't be read."""
    try:
        key = read_secret(jobs.key_file)
    except ValueError as error:
        raise StoreUnreachable(f"The key of the tokens of jobs can't be read: {error}.") from None
    code = hmac.new(key.encode(), f"{run}\n{attempt}".encode(), sha256)
    return f"{PREFIX}.{attempt}.{code.hexdigest()}"


def check_run_token(jobs: JobsConfig, token: str, run: str, attempt: int) -> bool:
    """Return whether the token is that of the attempt."""
    return hmac.compare_digest(token.encode(), make_run_token(jobs, run, attempt).encode())
