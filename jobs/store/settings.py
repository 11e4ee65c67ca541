"""Read the store's settings from the environment. They include no secrets.

boto3 itself reads endpoint, region and credentials (AWS_ENDPOINT_URL, AWS_PROFILE, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.process_environment import find_home

GIB = 1 << 30
PROJECT = "SLORA_PROJECT"
"""Variable that the service sets for the jobs of a project: they use the credentials that they were
handed and none of the node's, and folders of their own."""
HEAD_BYTES = "SLORA_HEAD_BYTES"
"""Set by the service for the processes that look at a bucket: see `jobs.store.head_copies`."""
MAX_TIMEOUT_S, MAX_ATTEMPTS = 3600, 100
"""With these, every request to a store ends."""

_PROJECT_NAME = re.compile(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_-]){0,127}")


@dataclass(frozen=True)
class S3Settings:
    """Retries, time-outs and encryption of requests to a bucket."""

    attempts: int = 6
    """Attempts per request; the standard mode of boto3 waits in between, up to twice as long."""
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    encryption: tuple[tuple[str, str], ...] = ()
    """Parameters of every write: ServerSideEncryption, SSEKMSKeyId."""


@dataclass(frozen=True)
class StoreSettings:
    """All settings of the store."""

    s3: S3Settings
    outbox: Path
    """A folder of adapters that could not be sent to their store yet."""
    cache: Path
    """A folder of models and data fetched from s3://."""
    cache_bytes: int
    signing_key: Path | None
    """A PEM file with the ed25519 private key that signs every commit and every promotion."""
    trust: str
    """Public keys whose signatures are demanded: a PEM file, or a list; empty without a policy."""
    seen_moves: Path
    """A folder with the highest move of each pointer that this user has read under a policy."""
    head_bytes: int | None = None
    """Bytes that this process copies of the objects of an address, from their starts; None: all."""


def read_store_settings(environment: Mapping[str, str] | None = None) -> StoreSettings:
    """Return the current settings. Not cached: tests and services change their environment."""
    env = os.environ if environment is None else environment
    state = _find_user_folder(env, "XDG_STATE_HOME", ".local/state")
    cache = _find_user_folder(env, "XDG_CACHE_HOME", ".cache")
    key = env.get("SLORA_SIGNING_KEY")
    project = _find_project_folder(env)
    outbox = Path(env.get("SLORA_OUTBOX") or state / "slora" / "outbox")
    return StoreSettings(
        s3=_read_s3_settings(env),
        outbox=outbox.parent / project / outbox.name,
        cache=Path(env.get("SLORA_CACHE") or cache / "slora") / project,
        cache_bytes=_read_number(env, "SLORA_CACHE_BYTES", 100 * GIB),
        signing_key=Path(key) if key else None,
        trust=env.get("SLORA_TRUST", "").strip(),
        seen_moves=state / "slora" / "moves",
        head_bytes=_read_number(env, HEAD_BYTES, 0) or None,
    )


def _find_project_folder(env: Mapping[str, str]) -> Path:
    """Return the part of a node's folders that a project's job uses, so that it meets no other's.

    Raise InputError for a name that no project has.
    """
    project = env.get(PROJECT, "")
    if not project:
        return Path()
    if not _PROJECT_NAME.fullmatch(project):
        problem = f"{project[:80]!a} is not the name of a project"
        raise InputError([Fault(PROJECT, problem, "Unset it: the service sets it for its jobs.")])
    return Path("projects", project)


def _find_user_folder(env: Mapping[str, str], name: str, default: str) -> Path:
    """Return the folder of a variable of the XDG standard, which says to ignore relative ones."""
    value = env.get(name, "")
    return Path(value) if value.startswith("/") else find_home(env) / default


def _read_s3_settings(env: Mapping[str, str]) -> S3Settings:
    options = {
        "ServerSideEncryption": env.get("SLORA_S3_SSE", ""),
        "SSEKMSKeyId": env.get("SLORA_S3_SSE_KMS_KEY_ID", ""),
    }
    return S3Settings(
        attempts=min(MAX_ATTEMPTS, max(1, _read_number(env, "AWS_MAX_ATTEMPTS", 6))),
        connect_timeout=_read_seconds(env, "SLORA_S3_CONNECT_TIMEOUT", 10),
        read_timeout=_read_seconds(env, "SLORA_S3_READ_TIMEOUT", 60),
        encryption=tuple((name, value) for name, value in options.items() if value),
    )


def _read_seconds(env: Mapping[str, str], name: str, default: int) -> int:
    seconds = _read_number(env, name, default)
    if not 0 < seconds <= MAX_TIMEOUT_S:
        problem = f"{seconds} is not a time-out from 1 to {MAX_TIMEOUT_S} seconds"
        raise InputError([Fault(name, problem, f"Use a number such as {default}.")])
    return seconds


def _read_number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        problem = f"{text[:40]!a} is not a whole number"
        raise InputError([Fault(name, problem, f"Use a number such as {default}.")])
    return int(text)
