"""The folder of one local whole: what is kept in it, its secrets, and who is at work on it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STORAGE, RAY, SERVICE = "storage", "ray", "service"
"""The parts, in the order in which they are started."""
BUCKET = "slora"
STORE = f"s3://{BUCKET}/store"
ACTIONS = ("Admin", "Read", "List", "Tagging", "Write")


class StackBusy(Exception):
    """Another `make up` or `make down` is at work."""


@dataclass(frozen=True)
class StackPaths:
    """Where everything of one whole lies; it is for its owner alone."""

    folder: Path

    @property
    def state(self) -> Path:
        """What runs."""
        return self.folder / "state.json"

    @property
    def objects(self) -> Path:
        """What the S3 server keeps."""
        return self.folder / "objects"

    @property
    def ray_token(self) -> Path:
        return self.folder / "ray-token"

    @property
    def identities(self) -> Path:
        """Who may use the S3 server, as it reads it."""
        return self.folder / "s3.json"

    @property
    def credentials(self) -> Path:
        """The same for boto3."""
        return self.folder / "aws-credentials"

    @property
    def config(self) -> Path:
        """What `slora serve --config` reads."""
        return self.folder / "service.yaml"

    @property
    def database(self) -> Path:
        return self.folder / "registry.db"

    @property
    def service_token(self) -> Path:
        """An administrator's, which the service writes beside its database."""
        return self.folder / "service-token"

    @property
    def environment(self) -> Path:
        """For a shell: `. FILE` and every command finds the service, the store and Ray."""
        return self.folder / "environment"

    def log_file(self, component: str) -> Path:
        return self.folder / "log" / f"{component}.log"

    def create(self) -> None:
        """The folder, and secrets where there are none yet."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.log_file("x").parent.mkdir(exist_ok=True)
        self.objects.mkdir(exist_ok=True)
        if not self.ray_token.exists():
            write_private(self.ray_token, secrets.token_hex(32))
        if not (self.identities.exists() and self.credentials.exists()):
            self._make_keys()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else changes what runs meanwhile. Raises Busy."""
        with (self.folder / "lock").open("w") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StackBusy(
                    f"{self.folder}: another make up or make down is at work"
                ) from error
            yield

    def _make_keys(self) -> None:
        key, secret = secrets.token_hex(10), secrets.token_urlsafe(30)
        pair = {"accessKey": key, "secretKey": secret}
        identity = {"name": "slora", "credentials": [pair], "actions": list(ACTIONS)}
        write_private(self.identities, json.dumps({"identities": [identity]}))
        lines = ("[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}")
        write_private(self.credentials, "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> None:
    """A file for its owner alone, there as a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def build_s3_environment(paths: StackPaths, url: str) -> dict[str, str]:
    """What boto3 reads, and nothing of what this machine's user has for other stores."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_SHARED_CREDENTIALS_FILE": str(paths.credentials),
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what names other clusters, other stores and other services."""
    prefixes = ("AWS_", "RAY_", "SLORA_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}
