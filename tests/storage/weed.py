"""A real S3 server for tests: SeaweedFS on free ports, in a folder, which ends with its parent."""

from __future__ import annotations

import base64
import ctypes
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

KEY, SECRET, BUCKET = "slora-test-key", "slora-test-secret-9f2c61d7", "adapters-test"
START_S = 180.0


class Weed:
    """The server. `kill` sends SIGKILL; `start` starts it again with its old content."""

    def __init__(
        self,
        folder: Path,
        secret: str = SECRET,
        identities: Sequence[Mapping[str, Any]] = (),
        roles: Sequence[str] = (),
    ) -> None:
        self._folder, self.secret = folder, secret
        self._ports = _find_free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": secret}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity, *identities]}))
        self._iam = folder / "iam.json"
        if roles:
            self._iam.write_text(json.dumps(make_iam_config(roles)))

    @property
    def port(self) -> int:
        return self._ports[3]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that boto3 reads."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self) -> object:
        """Return a plain boto3 client."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def start(self) -> None:
        """Start the server and wait until it accepts an object in the bucket of the tests."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        until = time.monotonic() + START_S
        while not self._answers():
            # A server that does not answer yet may have ended: wait for that before asking again.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
            if self._process.returncode is not None or time.monotonic() > until:
                raise RuntimeError(f"weed did not start: {self._log()}")

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        client = self.client()
        with suppress(ClientError):
            try:
                client.create_bucket(Bucket=BUCKET)  # type: ignore[attr-defined]
            except BotoCoreError:
                return False
        try:
            client.put_object(Bucket=BUCKET, Key="up", Body=b"1")  # type: ignore[attr-defined]
        except (BotoCoreError, ClientError):
            return False
        return True

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    def _command(self) -> list[str]:
        master, volume, filer, s3 = self._ports
        return [
            weed_binary(), "mini", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-s3.port={s3}", f"-s3.config={self._folder / 's3.json'}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
            "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
            *([f"-s3.iam.config={self._iam}"] if self._iam.exists() else []),
        ]  # fmt: skip


def make_iam_config(roles: Sequence[str]) -> dict[str, Any]:
    """Return a configuration with roles that may do anything, so that only a session restricts."""
    allowed = {"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": ["*"]}
    trusted = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
    return {
        "sts": {
            "tokenDuration": "1h",
            "maxSessionLength": "12h",
            "issuer": "tests",
            "signingKey": base64.b64encode(random.randbytes(32)).decode(),
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "All", "document": make_document(allowed)}],
        "roles": [
            {
                "roleName": arn.rpartition("/")[2],
                "roleArn": arn,
                "attachedPolicies": ["All"],
                "trustPolicy": make_document(trusted),
            }
            for arn in roles
        ],
    }


def make_document(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy of one statement."""
    return {"Version": "2012-10-17", "Statement": [statement]}


def weed_binary() -> str:
    """Return the program beside this Python, where its package installs it, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else (shutil.which("weed") or "weed")


def _find_free_ports(count: int) -> list[int]:
    """Return free ports p whose ports p + 10,000 are free too: the server uses both."""
    ports = list[int]()
    while len(ports) < count:
        port = random.randrange(20_000, 30_000)
        if port not in ports and _free(port) and _free(port + 10_000):
            ports.append(port)
    return ports


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> None:
    with suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
