"""The folder of a local stack: its files, its secrets, and its lock."""

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
STORAGE, RAY, SERVICE, SERVING = "storage", "ray", "service", "serving"
"""The components, in the order in which they start; the last one only where it is asked for."""
BUCKET = "slora"
STORE = f"s3://{BUCKET}/store"
ACTIONS = ("Admin", "Read", "List", "Tagging", "Write")


class StackBusy(Exception):
    """Another `make up` or `make down` is running."""


@dataclass(frozen=True)
class StackPaths:
    """Files of a local stack, in a folder that only its owner can access."""

    folder: Path

    @property
    def state(self) -> Path:
        """Return the file that records the processes."""
        return self.folder / "state.json"

    @property
    def objects(self) -> Path:
        """Return the data folder of the S3 server."""
        return self.folder / "objects"

    @property
    def ray_token(self) -> Path:
        return self.folder / "ray-token"

    @property
    def identities(self) -> Path:
        """Return the file with the users of the S3 server, in its own format."""
        return self.folder / "s3.json"

    @property
    def credentials(self) -> Path:
        """Return the file with the S3 credentials for boto3."""
        return self.folder / "aws-credentials"

    @property
    def job_key(self) -> Path:
        """Return the file with the key of the tokens by which jobs renew their credentials."""
        return self.folder / "job-key"

    @property
    def serving_key(self) -> Path:
        """Return the file with the API key of the model server."""
        return self.folder / "serving-key"

    @property
    def config(self) -> Path:
        """Return the file that `slora serve --config` reads."""
        return self.folder / "service.yaml"

    @property
    def database(self) -> Path:
        return self.folder / "registry.db"

    @property
    def service_token(self) -> Path:
        """Return the file of the admin token, which the service writes beside its database."""
        return self.folder / "service-token"

    @property
    def environment(self) -> Path:
        """Return the file that exports the addresses of the service and the store to a shell."""
        return self.folder / "environment"

    def project_credentials(self, project: str) -> Path:
        """Return the file with the S3 credentials of a project."""
        return self.folder / "projects" / project

    def log_file(self, component: str) -> Path:
        return self.folder / "log" / f"{component}.log"

    def create(self) -> None:
        """Create the folder, and the secrets that are missing."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.log_file("x").parent.mkdir(exist_ok=True)
        self.objects.mkdir(exist_ok=True)
        if not self.ray_token.exists():
            write_private(self.ray_token, secrets.token_hex(32))
        if not self.job_key.exists():
            write_private(self.job_key, secrets.token_hex(32))
        if not self.serving_key.exists():
            write_private(self.serving_key, secrets.token_hex(32))
        if not (self.identities.exists() and self.credentials.exists()):
            self._make_keys()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the stack while the block runs. Raise StackBusy if it is locked."""
        with (self.folder / "lock").open("w") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StackBusy(
                    f"{self.folder}: another make up or make down is running"
                ) from error
            yield

    def _make_keys(self) -> None:
        key, secret = secrets.token_hex(10), secrets.token_urlsafe(30)
        pair = {"accessKey": key, "secretKey": secret}
        identity = {"name": "slora", "credentials": [pair], "actions": list(ACTIONS)}
        write_private(self.identities, json.dumps({"identities": [identity]}))
        write_private(self.credentials, format_profile(key, secret))


def format_profile(key: str, secret: str) -> str:
    """Return a credentials file of AWS with one profile."""
    lines = ("[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}")
    return "\n".join(lines) + "\n"


def write_private(path: Path, text: str) -> None:
    """Write a file atomically that only its owner can access."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def build_s3_environment(paths: StackPaths, url: str) -> dict[str, str]:
    """Return the variables that boto3 reads, without the user's settings for other stores."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_SHARED_CREDENTIALS_FILE": str(paths.credentials),
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without variables for other clusters, stores and services."""
    prefixes = ("AWS_", "RAY_", "SLORA_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}
