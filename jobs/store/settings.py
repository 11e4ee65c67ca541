"""What the store reads from the environment, once and in one place; secrets are not among it.

Endpoint, region and credentials are boto3's own business (AWS_ENDPOINT_URL, AWS_PROFILE, ...).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import Fault, InputError

GIB = 1 << 30


@dataclass(frozen=True)
class S3Settings:
    """How a bucket is spoken to."""

    attempts: int = 6
    """Tries of one request; between them a random wait that doubles, by boto3's standard mode."""
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    encryption: Mapping[str, str] = field(default_factory=dict)
    """Passed through with every write: ServerSideEncryption, SSEKMSKeyId."""


@dataclass(frozen=True)
class StoreSettings:
    """The store's part of the environment."""

    s3: S3Settings
    outbox: Path
    """Where adapters wait that could not be sent."""
    cache: Path
    """Where models and data of s3:// lie while they are used."""
    cache_bytes: int
    signing_key: Path | None
    """A PEM file with an ed25519 private key: every commit is signed with it."""


def read_store_settings(environment: Mapping[str, str] | None = None) -> StoreSettings:
    """Read anew each time: tests and long-lived services change their environment."""
    env = os.environ if environment is None else environment
    home = Path(env.get("HOME") or "/")
    state = Path(env.get("XDG_STATE_HOME") or home / ".local" / "state")
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    key = env.get("SLORA_SIGNING_KEY")
    return StoreSettings(
        s3=_read_s3_settings(env),
        outbox=Path(env.get("SLORA_SPOOL") or state / "slora" / "spool"),
        cache=Path(env.get("SLORA_CACHE") or cache / "slora"),
        cache_bytes=_read_number(env, "SLORA_CACHE_BYTES", 100 * GIB),
        signing_key=Path(key) if key else None,
    )


def _read_s3_settings(env: Mapping[str, str]) -> S3Settings:
    options = {
        "ServerSideEncryption": env.get("SLORA_S3_SSE", ""),
        "SSEKMSKeyId": env.get("SLORA_S3_SSE_KMS_KEY_ID", ""),
    }
    return S3Settings(
        attempts=max(1, _read_number(env, "AWS_MAX_ATTEMPTS", S3Settings.attempts)),
        connect_timeout=_read_number(env, "SLORA_S3_CONNECT_TIMEOUT", 10),
        read_timeout=_read_number(env, "SLORA_S3_READ_TIMEOUT", 60),
        encryption={name: value for name, value in options.items() if value},
    )


def _read_number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise InputError([Fault(name, f"{text[:40]!a} is no number", f"Use e.g. {default}.")])
    return int(text)
